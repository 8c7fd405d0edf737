"""`clb-discovery demo`: the whole product in half a minute, with an embedded DNS server and local real servers."""

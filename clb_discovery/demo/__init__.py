"""The whole product in half a minute, on an embedded DNS server and local real servers."""

"""DNS SRV records, queried again when their TTLs expire."""

"""DNS SRV records, asked again as their TTLs run out."""

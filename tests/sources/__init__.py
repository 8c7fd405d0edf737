"""Sources against real Consul and real DNS servers; their parsers against bytes."""

"""The two loaders: libbpf and BCC."""

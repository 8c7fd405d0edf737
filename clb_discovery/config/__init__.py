"""Options, the configuration file, and the services, sources and settings that are made of them."""

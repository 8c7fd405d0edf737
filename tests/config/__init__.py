"""Options, the configuration file, services and settings."""

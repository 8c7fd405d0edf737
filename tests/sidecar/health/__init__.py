"""The health of real servers, as the sidecar finds it out."""

"""The health of real servers: the sidecar hears of failures, probes, and passes its verdicts to the programs."""

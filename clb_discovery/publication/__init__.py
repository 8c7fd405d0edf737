"""From the known real servers to the steps that change the kernel's maps."""

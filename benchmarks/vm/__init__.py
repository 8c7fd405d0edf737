"""The table of clb.ko's README in machines whose clock counts instructions: `make bench-vm`.

Each case boots a machine of its own with Debian's 6.1, so nothing of one case is in the kernel of another. In QEMU the
machine's clock advances by two nanoseconds with each instruction of its one processor, and jumps ahead while that is
idle: the measured time is a number of instructions, independent of the load of the host. `guest.py` runs in the
machine, `ways.py` sets it up for its case, and `figures.py`, which is pure, evaluates its results. The machines
themselves are those of `tests/vm`.
"""

"""The table of clb.ko's README in machines whose clock counts instructions: `make bench-vm`.

Each case boots a machine of its own with Debian's 6.1, so nothing of one case is in the kernel of another. QEMU lets
the clock of the machine advance by two nanoseconds with each instruction of its one processor, and jump where that has
nothing to do: what is measured there is how many instructions something takes, whatever the host does meanwhile. What
a machine does is in `guest.py`, how it is set up for its case in `ways.py`, and what is made of its findings in
`figures.py`, which is pure. The machines themselves are those of `tests/vm`.
"""

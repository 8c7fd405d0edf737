"""The kernel tests on other kernels: Debian's, in emulated machines.

A machine has three parts. Its kernel and the few modules that it needs come from Debian's package. Its root is one
read-only image for all kernels, with the programs and Python packages that the tests use; writes go to memory. The
wheel and the tests are in the initramfs with the modules, so they are never older than the checkout. `make bench-vm`
has machines of the same kind, with another root and another job (`benchmarks/vm`). Results come back as a tar archive
on a second disk. A machine has no connection to the outside but these disks and the console.
"""

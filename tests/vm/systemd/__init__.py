"""The units under a real systemd: Debian 12 and 13 in emulated machines, with the package that `make deb` builds.

A machine is a small Debian with the package, real servers, an application that is ordered after the sidecar, and an
unmodified client that connects without pause. Its disk is writable, so that it can be switched on twice. The scenarios
are in `guest/`: pytest, run as a service of that systemd.
"""

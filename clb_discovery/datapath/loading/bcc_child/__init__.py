"""The program that runs under an interpreter with BCC. It is alone in its directory, which Python adds to the path."""

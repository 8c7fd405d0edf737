"""The program that runs under an interpreter which has BCC; alone in its directory, which that puts on its path."""

"""How many channels does a processor compute at a time?"""

VECTOR = 16
"""Numbers in single precision in a vector of AVX-512, a multiple of those in shorter vectors, too: a width between two
multiples takes as long as the next."""

"""Letters of residues and nucleotides, and what to do with the others."""

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
NUCLEOTIDES = "ACGT"
IUPAC_NUCLEOTIDES = "ACGTURYSWKMBDHVN"


def invalid_letters(sequence: bytes, alphabet: str) -> bytes:
    """The bytes of `sequence` that are not in `alphabet`, in order."""
    return sequence.translate(None, alphabet.encode())


def looks_like_nucleotides(sequence: bytes) -> bool:
    """At least 20 letters, more than 90 % of them A C G T U N."""
    return len(sequence) >= 20 and len(invalid_letters(sequence.upper(), "ACGTUN")) < 0.1 * len(sequence)

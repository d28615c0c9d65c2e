"""Letters of residues and nucleotides, and what to do with the others."""

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
NUCLEOTIDES = "ACGT"
IUPAC_NUCLEOTIDES = "ACGTURYSWKMBDHVN"
LEUCINE = ord("L")  # a number is found in bytes twenty times as fast as a letter


def invalid_letters(sequence: bytes, alphabet: str) -> bytes:
    """The bytes of `sequence` that are not in `alphabet`, in order."""
    return sequence.translate(None, alphabet.encode())


def looks_like_nucleotides(sequence: bytes) -> bool:
    """At least 20 letters, all of them codes of nucleotides, 90 % A C G T U N, and a twentieth of each nucleotide.

    True of a few proteins, such as fragments of antifreeze proteins: many records together say what a file holds.
    """
    if LEUCINE in sequence or len(sequence) < 20:  # nearly all proteins hold one
        return False
    letters = sequence.upper()
    if invalid_letters(letters, IUPAC_NUCLEOTIDES):
        return False
    counts = [letters.count(b"A"), letters.count(b"C"), letters.count(b"G"), letters.count(b"T") + letters.count(b"U")]
    return sum(counts) + letters.count(b"N") > 0.9 * len(letters) and min(counts) >= 0.05 * len(letters)

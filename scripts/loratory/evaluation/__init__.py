"""What systems say (`predict`), what it is worth (`score`), how sure that is (`bootstrap`)."""

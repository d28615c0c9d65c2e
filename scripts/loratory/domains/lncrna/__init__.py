"""Long non-coding RNA (lncRNA) against messenger RNA (mRNA), from the transcript's sequence alone."""

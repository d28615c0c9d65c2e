import ast
import gzip
import random
import re
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn import metrics as reference
from studies import as_records

from loratory.data.files import read_json
from loratory.data.ledger import Ledger
from loratory.data.splits import SPLITS
from loratory.domains.contract import SplitFractions
from loratory.domains.dataset import audit_split, build_dataset, read_split
from loratory.domains.lncrna import build, cpat, frames, headers, metrics, simulate, sources, task
from loratory.errors import InputError

GENCODE = "ENST{0}.1|ENSG{1}.{2}|OTTHUMG1.1|-|NAME-201|NAME|{3}|"
GENES = 100  # of each class, in the simulated sets
VALUES = {metric.name: metric.compute_value for metric in metrics.METRICS}


def letters(n: int, seed=0) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=n))


def mutated(sequence: str, share: float, seed=0) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice("ACGT") if draw.random() < share else letter for letter in sequence)


def fasta(path, records) -> str:
    path.write_text("".join(f">{header}\n{sequence}\n" for header, sequence in records))
    return str(path)


def transcripts(tmp_path, coding=None, noncoding=None, header="auto") -> sources.Files:
    """Files with the given (header, sequence) records; a class not given holds one sound transcript."""
    coding = [("sound1", letters(300, 901))] if coding is None else coding
    noncoding = [("sound2", letters(300, 902))] if noncoding is None else noncoding
    paths = {"coding": [fasta(tmp_path / "c.fa", coding)], "noncoding": [fasta(tmp_path / "n.fa", noncoding)]}
    return sources.Files(**paths, header=header)


def read(files, ledger=None, **options) -> list[dict]:
    found = build.read(files, sources.Dataset(**options), ledger or Ledger())
    return sorted(found, key=lambda record: record["id"])


def table(sequences, label=0, gene="") -> list[dict]:
    """Records of {id: sequence} as they come out of `read` and `group`."""
    return [
        {"id": id, "group": id, "sequence": s, "length": len(s), "label": label, "gene": gene}
        for id, s in sequences.items()
    ]


# --- bad input: one line that names file, record and what to do ------------------------------------------------------

SOUND = letters(300)
BAD_RECORDS = {
    "protein": (("p", "MLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTK" * 6), "plain", "looks like protein, position 2 (L)"),
    "digit": (("d", SOUND[:30] + "7" + SOUND), "plain", "not a nucleotide, position 31 (7)"),
    "gap": (("g", SOUND + "-"), "plain", "not a nucleotide, position 301 (-)"),
    "u_and_t": (("m", "ACGU" + "T" * 300), "plain", "both U and T, at positions 4 and 5"),
    "no_pipes": (("ENST1.1 lncRNA", SOUND), "gencode", "no header of the form `gencode` (ENST1.1 lncRNA)"),
    "no_length": ((GENCODE.format(1, 1, 1, "long"), SOUND), "auto", "no length in the 7th field"),
    "truncated": (
        (GENCODE.format(1, 1, 1, 712), SOUND),
        "auto",
        "says 712 nucleotides, the sequence has 300 (ENST1.1)",
    ),
    "no_gene": (("ENST1.1 cdna", SOUND), "ensembl", "no header of the form `ensembl`"),
    "no_id": (("", SOUND), "plain", "header without an id"),
    "no_sequence": (("x", ""), "plain", "record without a sequence (x)"),
    "repeated": (("before", SOUND), "plain", "duplicate id, first seen at record 1 (before)"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_malformed_record_stops_the_build_and_names_its_place(tmp_path, name):
    record, header, words = BAD_RECORDS[name]
    before = {"gencode": GENCODE.format(9, 9, 1, 300), "ensembl": "before cdna gene:G1.1"}.get(header, "before")
    files = transcripts(tmp_path, coding=[(before, letters(300, 5)), record], header=header)
    with pytest.raises(InputError) as caught:
        read(files)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'c.fa'}:2: ") and words in line and "\n" not in line


def test_header_dialect_that_does_not_fit_says_how_to_mend_it(tmp_path):
    with pytest.raises(InputError, match=r"at least 7 fields.* fix: set `header: auto` or `header: plain`"):
        read(transcripts(tmp_path, header="gencode"))
    assert [r["gene"] for r in read(transcripts(tmp_path, header="plain"))] == ["", ""]


def latin(path):
    path.write_bytes(">caf\xe9\nACGT\n".encode("latin-1"))


BAD_FILES = {
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "blank": (lambda path: path.write_bytes(b"\n\n"), "holds no records"),
    "html": (lambda path: path.write_bytes(b"<!DOCTYPE html>"), "not FASTA (<!DOCTYPE html>"),
    "utf16": (lambda path: path.write_text(">a\nACGT\n", encoding="utf-16"), "wrong text encoding (UTF-16)"),
    "latin1": (latin, "not utf-8 at byte 3 of the line"),
    "cut_gz": (lambda path: path.write_bytes(gzip.compress(b">a\n" + SOUND.encode() * 99)[:-20]), "ends early"),
    "missing": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_an_unreadable_file_is_named_and_nothing_is_written(tmp_path, name):
    make, words = BAD_FILES[name]
    make(tmp_path / "bad.fa")
    files = sources.Files(coding=[str(tmp_path / "bad.fa")], noncoding=[fasta(tmp_path / "n.fa", [("a", SOUND)])])
    with pytest.raises(InputError) as caught:
        build_dataset("lncrna", files, sources.Dataset(), 0, tmp_path / "out")
    assert str(tmp_path / "bad.fa") in str(caught.value) and words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_one_id_in_both_classes_is_an_error_that_names_both_places(tmp_path):
    files = transcripts(
        tmp_path, [("a", SOUND), ("x", letters(300, 1))], [("x", letters(300, 2)), ("b", letters(300, 3))]
    )
    with pytest.raises(InputError) as caught:
        read(files)
    assert str(caught.value).startswith(
        f"{tmp_path / 'c.fa'}:2: one id in both classes, also at {tmp_path / 'n.fa'}:1 (x)"
    )
    ledger = Ledger("skip")
    assert [r["id"] for r in read(files, ledger)] == ["a", "b"]
    assert ledger.n_in == 4 and ledger.n_malformed == 2 and ledger.reason_counts() == {"label_conflict": 2}


def test_one_id_with_two_sequences_in_two_files_of_a_class_is_an_error(tmp_path):
    one, two = fasta(tmp_path / "1.fa", [("x", SOUND)]), fasta(tmp_path / "2.fa", [("x", letters(300, 1))])
    other = fasta(tmp_path / "n.fa", [("b", letters(300, 3))])
    with pytest.raises(InputError, match=r"2\.fa:1: one id, two sequences, first seen at .*1\.fa:1 \(x\)"):
        read(sources.Files(coding=[one, two], noncoding=[other]))
    same = sources.Files(coding=[one, fasta(tmp_path / "3.fa", [("x", SOUND)])], noncoding=[other])
    ledger = Ledger()
    assert len(read(same, ledger)) == 2 and ledger.reason_counts() == {"duplicate": 1}


def test_one_file_for_both_classes_is_named_as_such(tmp_path):
    both = fasta(tmp_path / "both.fa", [("a", SOUND), ("b", letters(300, 1))])
    (tmp_path / "link.fa").symlink_to(both)
    for other in (both, str(tmp_path / "link.fa"), f"{tmp_path}/b*.fa"):
        with pytest.raises(InputError, match="the same file is given twice, as `coding` and as `noncoding`"):
            read(sources.Files(coding=both, noncoding=other))
    with pytest.raises(InputError, match=r"one id in both classes, .*a file that holds both is split by class"):
        read(sources.Files(coding=both, noncoding=fasta(tmp_path / "copy.fa", [("a", SOUND)])))


def test_files_of_a_class_may_be_a_pattern(tmp_path):
    for number in range(3):
        fasta(tmp_path / f"c{number}.fa", [(f"c{number}", letters(300, number))])
    other = fasta(tmp_path / "n.fa", [("n", SOUND[::-1])])
    assert [r["id"] for r in read(sources.Files(coding=f"{tmp_path}/c?.fa", noncoding=other))] == [
        "c0",
        "c1",
        "c2",
        "n",
    ]


def rna_table(folder, rows) -> sources.Files:
    (folder / "rna.tsv").write_text("id\tsequence\tgene\tbiotype\n" + "".join("\t".join(row) + "\n" for row in rows))
    labels = {"mRNA": "coding", "lncRNA": "noncoding"}
    columns = {"group": "gene", "label": "biotype"}
    return sources.Files(tables=str(folder / "rna.tsv"), columns=columns, labels=labels)


def test_a_table_says_class_and_gene(tmp_path):
    rows = [("a", SOUND, "G1", "mRNA"), ("b", letters(300, 1).lower(), "", "lncRNA"), ("c", SOUND[:50], "G", "mRNA")]
    ledger = Ledger()
    found = read(rna_table(tmp_path, rows), ledger)
    assert [(r["id"], r["label"], r["gene"]) for r in found] == [("a", 0, "G1"), ("b", 1, "")]
    assert ledger.reason_counts() == {"too_short": 1} and ledger.n_in == 3


def test_a_class_that_labels_do_not_name_is_an_error(tmp_path):
    files = rna_table(tmp_path, [("a", SOUND, "G1", "mRNA"), ("b", letters(300, 1), "", "rRNA")])
    with pytest.raises(
        InputError, match=r"rna\.tsv:3: unknown class in column `biotype` \(rRNA\); expected mRNA, lncRNA"
    ):
        read(files)


def test_a_class_that_is_filtered_away_is_an_error_that_counts_why(tmp_path):
    with pytest.raises(InputError) as caught:
        read(transcripts(tmp_path, noncoding=[("a", SOUND[:50]), ("b", SOUND[:60])]))
    assert str(caught.value).startswith(f"{tmp_path / 'n.fa'}: only one class: no noncoding transcript is left")
    assert "{'too_short': 2}" in str(caught.value) and caught.value.reason == "one_class"


def test_one_gene_cannot_fill_four_splits(tmp_path):
    isoforms = [(f"{i} cdna gene:G.1", letters(300, i)) for i in range(9)]
    others = [(f"n{i}", letters(300, 100 + i)) for i in range(9)]
    with pytest.raises(InputError, match="lncrna, coding: 1 groups cannot fill 4 splits; the largest holds 100%"):
        build_dataset("lncrna", transcripts(tmp_path, isoforms, others), sources.Dataset(), 0, tmp_path / "out")


def test_options_that_contradict_each_other_are_refused():
    for model, options in [
        (sources.Dataset, {"min_length": 300, "max_length": 200}),
        (sources.Task, {"window": 100, "stride": 101}),
        (sources.Simulation, {"shortest": 500, "longest": 400}),
        (sources.Files, {"coding": [], "noncoding": ["n.fa"]}),
        (sources.Files, {"coding": ["c.fa"], "noncoding": ["n.fa"], "header": "reference"}),
    ]:
        with pytest.raises(ValidationError):
            model(**options)


# --- policy: what is left out is counted -----------------------------------------------------------------------------


def test_every_record_is_kept_or_accounted_for(tmp_path):
    coding = [
        ("keep1", letters(300, 1)),
        ("short", letters(199, 2)),
        ("long", letters(501, 3)),
        ("unsure", "NNRY" + letters(296, 4)),
        ("surer", "NNR" + letters(297, 5)),
        ("ENST1.2_PAR_Y|ENSG1.1_PAR_Y|-|-|N|N|300|", letters(300, 6)),
        ("ENST1.2|ENSG1.1|-|-|N|N|300|", letters(300, 6)),
        ("both1", letters(300, 7)),
    ]
    noncoding = [
        ("both2", letters(300, 7).lower().replace("t", "u")),
        ("keep2", letters(200, 8)),
        ("bad", "ACGJ" * 60),
    ]
    ledger = Ledger("skip")
    kept = read(transcripts(tmp_path, coding, noncoding), ledger, max_length=500)
    assert [r["id"] for r in kept] == ["ENST1.2", "keep1", "keep2", "surer"]
    assert ledger.reason_counts() == {
        "alphabet": 1, "ambiguous": 1, "duplicate": 1, "label_conflict": 2, "too_long": 1, "too_short": 1,
    }  # fmt: skip
    assert ledger.n_in == len(kept) + len(ledger.rows) == 11 and ledger.n_malformed == 1
    details = {row[2]: row[4] for row in ledger.rows}
    assert details["unsure"] == "1.3% > 1.0%" and details["short"] == "199 < 200 nt"
    assert details["ENST1.2_PAR_Y"] == "the sequence of ENST1.2"


def test_ambiguous_letters_within_the_limit_are_kept_as_n(tmp_path):
    record, _ = read(transcripts(tmp_path, [("a", "ry" + SOUND.lower())]))
    assert record["sequence"] == "NN" + SOUND and record["length"] == 302


@given(st.text("ACGT", min_size=1))
def test_rna_dna_and_lower_case_are_one_sequence(sequence):
    forms = sequence, sequence.replace("T", "U"), sequence.lower(), sequence.replace("T", "U").lower()
    assert {build.canonical_sequence("f:1", form.encode()) for form in forms} == {sequence}


@pytest.mark.parametrize(
    "header, id, gene",
    [
        ("ENST4.2|ENSG0018.7|OTTHUMG1.4|-|OR4F5-201|OR4F5|4|UTR5:1-1|CDS:2-4|", "ENST4.2", "ENSG0018"),
        ("ENST7.5|ENSG8.2_PAR_Y|-|-|N-201|N|4|", "ENST7.5", "ENSG8"),
        ("ENST7.5|-|-|-|N-201|N|4", "ENST7.5", ""),
        ("ENSMUST2.7 ncrna chromosome:GRCm38:3:1:4:-1 gene:ENSMUSG3.7 gene_biotype:lncRNA", "ENSMUST2.7", "ENSMUSG3"),
        ("ENST2.7 cdna gene_biotype:lncRNA description:x", "ENST2.7", ""),
        ("hg19_ct_UserTrack_3545_NM_017856 range=chrX:1-9 strand=-", "hg19_ct_UserTrack_3545_NM_017856", ""),
        ("gi|53292629|ref|NM_001005405.2| keratin", "NM_001005405.2", ""),
        ("NR_046018.2 DEAD/H-box helicase (DDX11L1), variant 1, non-coding RNA", "NR_046018.2", "DDX11L1"),
        ("gi|572875088|ref|NM_001288980.1| frame (C18orf54), variant 1, mRNA", "NM_001288980.1", "C18orf54"),
        ("XR_1.1 PREDICTED: uncharacterized LOC124903500 (LOC124903500), ncRNA", "XR_1.1", "LOC124903500"),
        ("NM_000014.6 A2M [organism=Homo sapiens] [GeneID=2] [transcript=1]", "NM_000014.6", "2"),
        ("ENSG00000223972|ENST00000456328", "ENST00000456328", "ENSG00000223972"),
        ("ENSG00000223972.5|ENST00000456328.2|1|11869|14409|1|2541|lncRNA", "ENST00000456328.2", "ENSG00000223972"),
        ("ENST00000456328|DDX11L1|ENSG00000223972", "ENST00000456328", "ENSG00000223972"),
        ("LINC01409:1", "LINC01409:1", "LINC01409"),
        ("lnc-DDX-3:2 hg38", "lnc-DDX-3:2", "lnc-DDX-3"),
        ("chr1:100 region", "chr1:100", ""),
        ("MSTRG.1.1 gene=MSTRG.1", "MSTRG.1.1", "MSTRG.1"),
        ("MSTRG.12.3", "MSTRG.12.3", "MSTRG.12"),
        ("PB.7.2|chr1|+", "PB.7.2|chr1|+", ""),
        ("PB.7.2", "PB.7.2", "PB.7"),
        ("TRINITY_DN1000_c115_g5_i1 len=247", "TRINITY_DN1000_c115_g5_i1", "TRINITY_DN1000_c115_g5"),
        ("rna-1 gene=RP11-34P13.7", "rna-1", "RP11-34P13.7"),
    ],
)  # fmt: skip
def test_header_dialects_are_told_apart(header, id, gene):
    assert headers.parse_header("f:1", header, 4, "auto") == (id, gene)


def test_a_table_names_the_genes_that_headers_do_not(tmp_path):
    files = transcripts(tmp_path, [("a.1", SOUND)], [("b", letters(300, 3)), ("c gene=G9", letters(300, 4))])
    (tmp_path / "genes.tsv").write_text("transcript\tgene\na\tG1\nb\tG2\textra\n")
    found = read(files.model_copy(update={"genes": str(tmp_path / "genes.tsv")}))
    assert {r["id"]: r["gene"] for r in found} == {"a.1": "G1", "b": "G2", "c": "G9"}


@pytest.mark.parametrize(
    "row, words", [("b", "no gene in this row (b)"), ("a,G2", "two genes of one transcript, G1 and G2 (a)")]
)
def test_a_bad_row_of_a_gene_table_is_named(tmp_path, row, words):
    (tmp_path / "genes.csv").write_text(f"a,G1\n{row}\n")
    with pytest.raises(InputError, match=re.escape(f"genes.csv:2: {words}")):
        headers.read_gene_table(tmp_path / "genes.csv")


def test_labels_follow_the_role_and_never_the_name(tmp_path):
    one, two = fasta(tmp_path / "mRNA_coding.fa", [("a", SOUND)]), fasta(tmp_path / "lncRNA.fa", [("b", SOUND[::-1])])
    straight = read(sources.Files(coding=[one], noncoding=[two]))
    swapped = read(sources.Files(coding=[two], noncoding=[one]))
    assert {r["id"]: r["label"] for r in straight} == {"a": 0, "b": 1}
    assert {r["id"]: r["label"] for r in swapped} == {"a": 1, "b": 0}


# --- groups and splits -----------------------------------------------------------------------------------------------


def test_groups_join_isoforms_and_similar_transcripts_of_other_genes():
    first, second, third = letters(400, 1), letters(400, 2), letters(400, 3)
    records = table({"a": first}, gene="G1") + table({"b": second}, gene="G1")
    records += table({"c": mutated(second, 0.1)}, gene="G2") + table({"d": third}) + table({"e": letters(400, 4)})
    assert build.group(as_records(records), sources.Dataset()) == ["a", "a", "a", "d", "e"]


@pytest.mark.parametrize("covered, expected", [("both", ["near"]), ("shorter", ["near", "part"])])
def test_leaks_finds_what_resembles_a_held_out_record(covered, expected):
    near, far = mutated(SOUND, 0.1), mutated(SOUND, 0.9)
    found = build.find_leaks(
        as_records(table({"held": SOUND})),
        as_records(table({"near": near, "far": far, "part": SOUND[:100]})),
        sources.Dataset(covered=covered),
    )
    assert found == dict.fromkeys(expected, "held")


def exhaustive_pairs(left: list[dict], right: list[dict]) -> set[tuple[str, str]]:
    """Pairs that another aligner, without a filter and on both strands, finds 80 % identical over 80 % of one."""
    from Bio.Align import PairwiseAligner

    aligner = PairwiseAligner(mode="local", match_score=2, mismatch_score=-3, open_gap_score=-5, extend_gap_score=-2)
    found = set()
    for a in left:
        for b in right:
            for strand in (b["sequence"], b["sequence"][::-1].translate(str.maketrans("ACGT", "TGCA"))):
                best = next(iter(aligner.align(a["sequence"], strand)), None)
                counts = best.counts() if best else None
                columns = counts.identities + counts.mismatches + counts.gaps if counts else 0
                covered = counts.identities + counts.mismatches if counts else 0
                if columns and counts.identities >= 0.8 * columns and covered >= 0.8 * min(a["length"], b["length"]):
                    found.add((a["id"], b["id"]))
    return found


def test_no_pair_of_splits_is_related_by_an_independent_exhaustive_search(tmp_path):
    """Fragments, isoforms, repeats and antisense transcripts among unrelated ones."""
    sequences = {f"r{i}": letters(240, 100 + i) for i in range(26)}
    sequences |= {f"frag{i}": sequences[f"r{i}"][20:180] for i in range(6)}
    sequences |= {f"near{i}": mutated(sequences[f"r{i}"], 0.1, i) for i in range(6, 10)}
    sequences |= {f"rep{i}": mutated("ACGGTTACATGC" * 20, 0.01, i) for i in range(6)}
    sequences["anti"] = sequences["r11"][::-1].translate(str.maketrans("ACGT", "TGCA"))
    noncoding = [(id, sequence) for id, sequence in sequences.items()]
    coding = [(f"c{i}", letters(240, 500 + i)) for i in range(20)]
    options = sources.Dataset(min_length=100, split=SplitFractions(train=0.4, gate=0.2, valid=0.2, test=0.2))
    build_dataset("lncrna", transcripts(tmp_path, coding, noncoding), options, 1, tmp_path / "data")
    parts = {split: read_split(tmp_path / "data", split) for split in SPLITS}
    assert exhaustive_pairs(table({"a": SOUND}), table({"b": SOUND[:100]})) == {("a", "b")}
    for first, second in combinations(SPLITS, 2):
        assert exhaustive_pairs(parts[first], parts[second]) == set()


def test_test_records_that_resemble_pretraining_are_dropped_and_what_is_left_is_counted(tmp_path):
    rows = [(f"x{i}", letters(300, i)) for i in range(30)], [(f"y{i}", letters(300, 100 + i)) for i in range(30)]
    files = transcripts(tmp_path, *rows)
    build_dataset("lncrna", files, sources.Dataset(), 5, tmp_path / "general")
    known = {r["sequence"] for r in read_split(tmp_path / "general", "train")}
    build_dataset("lncrna", files, sources.Dataset(), 1, tmp_path / "plain")
    before = read_split(tmp_path / "plain", "test")
    assert any(r["sequence"] in known for r in before)
    with pytest.raises(InputError, match="resembles_pretraining"):
        audit_split("lncrna", tmp_path / "plain", sources.Dataset(), tmp_path / "a.json", [tmp_path / "general"])
    build_dataset("lncrna", files, sources.Dataset(), 1, tmp_path / "data", [tmp_path / "general"])
    after = read_split(tmp_path / "data", "test")
    assert [r["id"] for r in after] == [r["id"] for r in before if r["sequence"] not in known]
    card = read_json(tmp_path / "data" / "card.json")
    assert card["n_rejected"]["resembles_pretraining"] == len(before) - len(after)
    audit_split("lncrna", tmp_path / "data", sources.Dataset(), tmp_path / "a.json", [tmp_path / "general"])
    audit = read_json(tmp_path / "a.json")
    assert audit["counts"]["resembles_pretraining"] == 0 and audit["test"] == len(after)
    assert audit["shared"]["pretraining"]["95% identity over 200 nucleotides"]["records"] == 0


LETS_THROUGH = {"random": True, "clustered": False}


@pytest.mark.parametrize("protocol", LETS_THROUGH)
def test_weaker_protocols_let_isoforms_through_and_the_audit_counts_them(protocol, tmp_path):
    genes = [(f"{side}{gene}", letters(300, 1000 * (side == "y") + gene)) for side in "xy" for gene in range(12)]
    rows = [(f"{name}.{cut}", sequence[cut:]) for name, sequence in genes for cut in range(4)]
    files = transcripts(tmp_path, [r for r in rows if r[0][0] == "x"], [r for r in rows if r[0][0] == "y"])
    options = sources.Dataset(protocol=protocol)
    build_dataset("lncrna", files, options, 1, tmp_path / "data")
    audit_split("lncrna", tmp_path / "data", options, tmp_path / "a.json")
    audit = read_json(tmp_path / "a.json")
    through = audit["shared"]["other splits"]["80% identity over 80% of one"]["records"]
    assert (through > 0) == LETS_THROUGH[protocol] == (audit["counts"]["resembles_test"] > 0)
    if protocol == "random":
        with pytest.raises(InputError, match="the splits leak"):
            audit_split("lncrna", tmp_path / "data", sources.Dataset(), tmp_path / "b.json")


def test_a_weaker_protocol_stops_for_all_but_what_it_lets_through():
    weak, strong = sources.Dataset(protocol="clustered"), sources.Dataset()
    assert strong.forbids("resembles_test") and not weak.forbids("resembles_test")
    assert weak.forbids("groups_in_two_splits") and weak.forbids("resembles_pretraining")


def test_what_test_shares_with_another_entry_whose_systems_are_tested_on_it_is_counted_and_not_dropped(tmp_path):
    rows = [(f"x{i}", letters(300, i)) for i in range(30)], [(f"y{i}", letters(300, 100 + i)) for i in range(30)]
    files, options = transcripts(tmp_path, *rows), sources.Dataset()
    build_dataset("lncrna", files, options, 5, tmp_path / "human")
    build_dataset("lncrna-cow", files, options, 1, tmp_path / "cow")
    audit_split("lncrna-cow", tmp_path / "cow", options, tmp_path / "a.json", transfer={"lncrna": tmp_path / "human"})
    known = {r["sequence"] for r in read_split(tmp_path / "human", "train")}
    both = sum(r["sequence"] in known for r in read_split(tmp_path / "cow", "test"))
    found = read_json(tmp_path / "a.json")["shared"]["train of lncrna"]
    assert both and found["95% identity over 200 nucleotides"]["records"] == both


def test_what_the_policy_allows_is_counted_and_so_are_contradicting_labels():
    shared = letters(240, 7)
    held = table({"a": letters(800, 8) + shared}) + table({"b": letters(300, 9)}, gene="G")
    others = table({"c": shared + letters(900, 10)}, label=1, gene="H")
    found = build.count_overlaps(as_records(held), as_records(others), sources.Dataset())
    assert {name: entry["records"] for name, entry in found.items()} == {
        "80% identity over 80% of both": 0,
        "80% identity over 80% of one": 0,
        "95% identity over 200 nucleotides": 1,
        "the same with the other label": 1,
        "perhaps a gene (none is named)": 1,
    }


def test_where_no_gene_is_named_nothing_is_said_of_genes():
    held, others = table({"a": letters(300, 8)}), table({"c": letters(300, 10)}, gene="H")
    assert "perhaps a gene (none is named)" not in build.count_overlaps(
        as_records(held), as_records(others), sources.Dataset()
    )


def plain_text(path) -> str:
    return gzip.decompress(Path(path).read_bytes()).decode()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Files and dataset folder of the simulator's two populations."""
    out = {}
    for population in simulate.SPECIES:
        folder = tmp_path_factory.mktemp(population)
        named = simulate.simulate(sources.Simulation(genes=GENES), population, 7, folder)
        files = sources.Files(**named).map_locations(lambda name, folder=folder: str(folder / name))
        build_dataset("lncrna", files, sources.Dataset(), 7, folder / "data")
        out[population] = files, folder / "data"
    return out


def test_a_dataset_passes_its_audit_and_its_account_adds_up(simulated, tmp_path):
    _, folder = simulated["domain"]
    audit_split("lncrna", folder, sources.Dataset(), tmp_path / "audit.json")
    assert set(read_json(tmp_path / "audit.json")["counts"].values()) == {0}
    card = read_json(folder / "card.json")
    assert card["n_in"] == card["n_kept"] + sum(card["n_rejected"].values())
    assert set(card["summary"]["noncoding"]["records"]) == set(SPLITS)
    genes = {}
    for split in SPLITS:
        for record in read_split(folder, split):
            assert genes.setdefault(record["gene"], split) == split
    assert len(genes) == 2 * GENES


def test_every_split_has_both_classes_in_about_the_same_share(simulated):
    shares = [np.mean([r["label"] for r in read_split(simulated["domain"][1], split)]) for split in SPLITS]
    assert max(shares) - min(shares) < 0.15


def test_a_planted_isoform_joins_its_gene(simulated):
    files, folder = simulated["domain"]
    records = read(files)
    victim = read_split(folder, "test")[0]
    isoform = {**victim, "id": "0NEW.1", "sequence": letters(300, 77)}  # unlike its gene: only the gene id tells
    records = sorted([*records, isoform], key=lambda record: record["id"])
    found = as_records(records)
    found = found.with_column("group", build.group(found, sources.Dataset()))
    home = {r["id"]: r["split"] for r in build.split(found, sources.Dataset(), 7, Ledger())}
    assert home["0NEW.1"] == home[victim["id"]]


def test_file_order_is_irrelevant(simulated, tmp_path):
    files, _ = simulated["domain"]
    turned = {}
    for role in build.LABELS:
        records = plain_text(getattr(files, role)[0]).split(">")[1:]
        (tmp_path / role).write_text("".join(">" + record for record in reversed(records)))
        turned[role] = [str(tmp_path / role)]
    there, here = ([{**r, "where": ""} for r in read(each)] for each in (sources.Files(**turned), files))
    assert there == here


def test_the_official_split_is_counted_in_the_audit_alone(monkeypatch):
    monkeypatch.setattr(build.mmseqs, "search_sequences", lambda *given: [])
    frame = "CC" + "ATG" + 90 * "GAA" + "TAG"
    held = [{**r, "gene": f"G{i % 3}"} for i, r in enumerate(table({f"h{i}": frame for i in range(100)}))]
    held = as_records([*held, *table({"no_frame": 90 * "C"})])
    others = as_records([{**r, "gene": "G0"} for r in table({"o": frame})] + table({"x": frame}, gene="G9"))
    said = " in train by LoRA-BERT's own split"
    counts = {
        name.removesuffix(said): each["records"]
        for name, each in build.count_overlaps(held, others, sources.Dataset(compat="official")).items()
        if name.endswith(said)
    }
    assert 80 <= counts["its own reading frame,"] <= 97
    assert counts["another transcript of its gene,"] == 100
    lone = build.official_overlaps(*(as_records(table({id: frame}, gene=id)) for id in "ab"))
    assert lone[f"another transcript of its gene,{said}"]["records"] == 0
    assert not any(name.endswith(said) for name in build.count_overlaps(held, others, sources.Dataset()))


def test_proof_counts_every_kind_of_planted_leak():
    def part(id, group, gene, sequence):
        return [
            {"id": f"{id}{label}", "group": group, "gene": gene, "sequence": sequence + "A" * label, "label": label}
            for label in (0, 1)
        ]

    def proof(parts):
        return build.proof({split: as_records(rows) for split, rows in parts.items()}, None)

    sound = {split: part(split, split, "", split) for split in SPLITS}
    assert not any(proof(sound).values())
    for count, leak in {
        "groups_in_two_splits": part("x", "test", "", "x"),
        "genes_in_two_splits": part("x", "x", "gene", "x"),
        "sequences_in_two_splits": part("x", "x", "", "test")[:1] + part("y", "y", "", "y"),
    }.items():
        others = {**sound, "test": sound["test"] + part("t", "t", "gene", "t"), "train": leak}
        assert [name for name, n in proof(others).items() if n] == [count]
    assert proof({**sound, "gate": sound["gate"][:1]})["splits_without_both_classes"] == 1


# --- task ------------------------------------------------------------------------------------------------------------


def test_prompts_are_three_letter_words_with_the_positive_choice_second():
    (record,) = table({"a": "ACGTTNAC"}, label=1)
    (causal,) = task.examples([record], sources.Task(), "causal")
    assert causal.prompt == "[Classify RNA] acg ttn ac\n" and causal.target == " noncoding"
    (encoder,) = task.examples([record], sources.Task(), "encoder")
    assert encoder.prompt == "acg ttn ac" and encoder.choices == causal.choices == (" coding", " noncoding")
    assert task.examples(table({"a": "ACG"}), sources.Task(), "causal")[0].target == " coding"


def test_nucleotides_are_written_as_words_as_letters_or_as_they_are():
    (record,) = table({"a": "ACGTTNAC"})
    written = {"3-mers": "acg ttn ac", "letters": "a c g t t n a c", "sequence": "ACGTTNAC"}
    for layout, expected in written.items():
        [causal], [encoder] = (task.examples([record], sources.Task(layout=layout), f) for f in ("causal", "encoder"))
        assert (causal.prompt, encoder.prompt) == (f"[Classify RNA] {expected}\n", expected)


@given(st.integers(1, 3000), st.integers(3, 500), st.none() | st.integers(1, 500), st.none() | st.integers(1, 9))
def test_windows_cover_every_nucleotide_unless_limited(length, window, stride, limit):
    stride = stride and min(stride, window)
    starts = task.window_starts(length, window, stride)
    read = {position for start in starts for position in range(start, min(start + window, length))}
    assert read == set(range(length)) and all(a < b for a, b in pairwise(starts))
    limited = task.window_starts(length, window, stride, limit)
    assert len(limited) == min(len(starts), limit or len(starts))
    assert limited[0] == 0 and (len(limited) == 1 or limited[-1] == max(0, length - window))


def test_limited_windows_are_evenly_spread():
    assert task.window_starts(1000, 100, None, 4) == [0, 300, 600, 900]
    assert task.window_starts(1000, 400) == [0, 200, 400, 600] and task.window_starts(900, 400) == [0, 200, 400, 500]


@given(st.text("ACGTN", min_size=1, max_size=900), st.integers(3, 90))
def test_nothing_of_a_window_is_lost_in_its_words(sequence, window):
    questions = task.examples(table({"a": sequence}), sources.Task(window=window), "encoder")
    starts = task.window_starts(len(sequence), window)
    assert [q.prompt.replace(" ", "").upper() for q in questions] == [sequence[s : s + window] for s in starts]
    assert {q.id for q in questions} == {"a"}
    if len(sequence) <= window:
        assert len(questions) == 1


def test_a_motif_at_the_very_end_reaches_the_model():
    plain, marked = (
        [q.prompt for q in task.examples(table({"a": s}), sources.Task(), "causal")]
        for s in (SOUND * 5, SOUND * 5 + "A")
    )
    assert plain[-1] != marked[-1] and plain[0] == marked[0]


def test_only_the_sequence_reaches_prompts_and_baselines(simulated):
    train, test = (read_split(simulated["domain"][1], split) for split in ("train", "test"))
    blind = [{**r, "id": f"r{i}", "gene": "", "group": f"g{i}"} for i, r in enumerate(test)]
    seen, unseen = ([q.prompt for q in task.examples(part, sources.Task(), "causal")] for part in (test, blind))
    assert seen == unseen
    rows, blind_rows = (task.baselines(train, part, sources.Task()) for part in (test, blind))
    for system in rows:
        assert [r["p"] for r in rows[system]] == [r["p"] for r in blind_rows[system]]
        assert [r["id"] for r in rows[system]] == [r["id"] for r in test]


def test_the_joint_control_sees_length_frame_and_composition():
    sequence = "CC" + "ATG" + 3 * "GAA" + "TAG" + "C"
    found = task.length_orf_kmers(sequence)
    assert found[:3] == pytest.approx([np.log(18), np.log1p(12), 12 / 18])
    np.testing.assert_array_equal(found[3:], task.kmer_shares(sequence))


def slow_orf(sequence: str) -> int:
    """Every ATG, read codon by codon."""
    best = 0
    for start in range(len(sequence) - 2):
        if sequence[start : start + 3] == "ATG":
            codons = re.findall("...", sequence[start:])
            stops = [i for i, codon in enumerate(codons) if codon in ("TAA", "TAG", "TGA")]
            best = max(best, 3 * (stops[0] if stops else len(codons)))
    return best


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(["ATG", "TAA", "TAG", "TGA", "A", "C", "G", "T", "N", "GCC"]), min_size=1).map("".join)
)
def test_longest_orf_is_that_of_a_slow_search(sequence):
    assert frames.longest_orf(sequence) == slow_orf(sequence)


@pytest.mark.parametrize(
    "sequence, nt", [("CATGAAATAAC", 6), ("ATGAAACC", 6), ("ATG", 3), ("TTT", 0), ("AT", 0), ("CAT", 0)]
)
def test_longest_orf_is_on_the_sense_strand_and_may_be_open(sequence, nt):
    assert frames.longest_orf(sequence) == nt


@pytest.mark.parametrize(
    "sequence, frame",
    [("CATGAAATAACTAG", "ATGAAATAA"), ("CATGAAACC", "ATGAAA"), ("TTTTAA", ""), ("CCATGTGA", "ATGTGA")],
)
def test_a_frame_is_read_codon_by_codon_with_its_stop(sequence, frame):
    options = sources.Task(prompt="", reads="frame")
    (example,) = task.examples([{"id": "r", "group": "g", "sequence": sequence, "label": 0}], options, "causal")
    assert example.prompt == task.kmer_text(frame) + "\n"


def test_windows_of_a_frame_start_at_its_start_codon():
    record = {"id": "r", "group": "g", "sequence": "C" + "ATG" + 50 * "GAA" + "TGA" + 90 * "C", "label": 0}
    (example,) = task.examples([record], sources.Task(prompt="", reads="frame", window=30, max_windows=1), "causal")
    assert example.prompt == "atg " + " ".join(9 * ["gaa"]) + "\n"


@given(st.text("ACGTN", min_size=1, max_size=60))
def test_kmer_shares_are_counts_of_overlapping_words(sequence):
    words = [sequence[i : i + 3] for i in range(len(sequence) - 2) if "N" not in sequence[i : i + 3]]
    order = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT"]
    expected = [words.count(word) / max(1, len(words)) for word in order]
    np.testing.assert_allclose(task.kmer_shares(sequence), expected)


def slow_fickett(sequence: str) -> float:
    """TESTCODE with loops over CPAT's tables, and Fickett's own thresholds."""
    total = 0.0
    for row, letter in enumerate("ACGT"):
        counts = [sequence[place::3].count(letter) for place in range(3)]
        uneven = next(i for i, least in enumerate(cpat.UNEVENNESS) if max(counts) / (min(counts) + 1) >= least)
        share = next(i for i, least in enumerate(cpat.SHARES) if sequence.count(letter) / len(sequence) >= least)
        total += cpat.BY_UNEVENNESS[row][uneven] * cpat.UNEVENNESS_WEIGHTS[row]
        total += cpat.BY_SHARE[row][share] * cpat.SHARE_WEIGHTS[row]
    return total


@given(st.text("ACGTN", min_size=1, max_size=90))
def test_the_fickett_score_is_that_of_loops_over_the_tables(sequence):
    assert cpat.fickett_score(sequence) == pytest.approx(slow_fickett(sequence))


def test_the_fickett_score_of_a_sequence_worked_out_by_hand():
    # each of A, G and C stands at one place of the codon alone and has a share of 1/3; there is no T
    assert cpat.fickett_score(30 * "AGC") == pytest.approx(
        0.26 * 0.94 + 0.18 * 0.80 + 0.31 * 0.90 + 0.33 * 0.09 + 0.11 * 0.28 + 0.12 * 0.82 + 0.15 * 0.40 + 0.14 * 0.58
    )


@given(st.text("ACGTN", max_size=40))
def test_hexamers_start_at_every_codon_and_hold_no_n(sequence):
    words = [sequence[at : at + 6] for at in range(0, len(sequence) - 5, 3)]
    numbers = [int("".join(str("ACGT".index(x)) for x in word), 4) for word in words if "N" not in word]
    assert cpat.frame_hexamers(sequence).tolist() == numbers


def test_hexamer_ratios_compare_frames_of_mrnas_with_whole_lncrnas():
    train = table({"m": "CC" + "ATG" + 9 * "GAA" + "TAG"}) + table({"l": 8 * "CAT"}, label=1)
    ratios = cpat.hexamer_ratios(train)
    share = {"GAAGAA": (9 / (4096 + 9), 1 / (4096 + 7)), "CATCAT": (1 / (4096 + 9), 8 / (4096 + 7))}
    for word, (coding, noncoding) in share.items():
        (number,) = cpat.frame_hexamers(word)
        assert ratios[number] == pytest.approx(np.log(coding / noncoding))
    length, coverage, _, score = cpat.cpat_features("C" + "ATG" + 4 * "GAA" + "TAACAT", ratios)
    assert (length, coverage) == (15, 15 / 22)
    read = [ratios[cpat.frame_hexamers(word)[0]] for word in ("ATGGAA", "GAAGAA", "GAAGAA", "GAAGAA")]
    assert score == pytest.approx(np.mean(read)) and score > 0
    nothing = cpat.cpat_features("CATCATCATCAT"[1:], ratios)
    assert nothing[:2].tolist() == [0, 0] and nothing[2] == cpat.fickett_score("CATCATCATCAT"[1:])


def test_the_labels_of_held_out_transcripts_do_not_reach_the_hexamers():
    train = table({f"m{i}": letters(240, i) for i in range(8)}) + table(
        {f"l{i}": letters(240, 50 + i) for i in range(8)}, 1
    )
    test = table({"a": letters(300, 99)})
    rows = [task.baselines(train, [{**test[0], "label": label}], sources.Task()) for label in (0, 1)]
    assert rows[0]["cpat_features"][0]["p"] == rows[1]["cpat_features"][0]["p"]


# --- metrics ---------------------------------------------------------------------------------------------------------


def columns(label, p, length=None):
    length = length or [300] * len(label)
    records = [{"id": f"r{i:04d}", "label": x, "length": n} for i, (x, n) in enumerate(zip(label, length))]
    return metrics.columns([{"id": r["id"], "p": q} for r, q in zip(records, p)], records, sources.Task())


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0, 0.1, 0.4, 0.5, 0.7, 1])), min_size=2, max_size=40))
def test_metrics_agree_with_scikit_learn(pairs):
    label, p = [int(x) for x, _ in pairs], [q for _, q in pairs]
    found, said = columns(label, p), [q >= 0.5 for q in p]
    assert VALUES["accuracy"](found) == pytest.approx(reference.accuracy_score(label, said))
    assert VALUES["brier"](found) == pytest.approx(np.mean((np.array(p) - label) ** 2))
    if len(set(label)) == 2:
        assert VALUES["auc"](found) == pytest.approx(reference.roc_auc_score(label, p))
        assert VALUES["mcc"](found) == pytest.approx(reference.matthews_corrcoef(label, said))
        assert VALUES["f1"](found) == pytest.approx(reference.f1_score(label, said))
        assert VALUES["precision"](found) == pytest.approx(reference.precision_score(label, said, zero_division=0))
        assert VALUES["recall"](found) == pytest.approx(reference.recall_score(label, said))
        assert VALUES["specificity"](found) == pytest.approx(reference.recall_score(label, said, pos_label=0))
        assert VALUES["balanced_accuracy"](found) == pytest.approx(reference.balanced_accuracy_score(label, said))
        assert VALUES["auprc"](found) == pytest.approx(reference.average_precision_score(label, p))
    else:
        names = ("auc", "auc_length_matched", "mcc", "f1", "precision", "balanced_accuracy", "auprc")
        assert all(np.isnan(VALUES[name](found)) for name in names)


def test_transcripts_are_scored_by_length_too_each_in_one_bin():
    label, p, length = [0, 1, 1, 0, 0, 1], [0.1, 0.9, 0.2, 0.8, 0.5, 0.5], [499, 500, 501, 2000, 2001, 9000]
    found = columns(label, p, length)
    names = ("auc_to_500", "auc_501_2000", "auc_over_2000")
    assert [VALUES[name](found) for name in names] == [1, 0, 0.5]
    counted = sum(len(found["p"][metric.row_selection(found)]) for metric in metrics.METRICS if metric.name in names)
    assert counted == len(label)


def test_calibration_error_is_0_where_each_bin_is_as_often_lncrna_as_it_says():
    assert VALUES["calibration_error"](columns([1, 0, 0, 0, 1, 1, 1, 0], [0.25] * 4 + [0.75] * 4)) == 0
    # p 0.05 on two mRNAs, 0.95 on one of each: (2 · 0.05 + 2 · |0.95 − 0.5|) / 4
    assert VALUES["calibration_error"](columns([0, 0, 1, 0], [0.05, 0.05, 0.95, 0.95])) == pytest.approx(0.25)
    assert VALUES["calibration_error"](columns([1, 0], [1.0, 0.0])) == 0


def test_constant_predictors_and_undefined_values():
    constant = columns([0, 1, 1, 0], [0.9] * 4)
    assert VALUES["mcc"](constant) == 0 and VALUES["auc"](constant) == 0.5
    for nothing in (columns([], []), columns([0, 1, 0, 1], [np.nan, np.nan, 0.5, 0.5])):
        assert all(np.isnan(value(nothing)) for value in VALUES.values())


def test_length_matching_takes_equally_many_of_each_class_whatever_the_order():
    draw = np.random.default_rng(1)
    label = np.repeat([0, 1], [600, 300])
    length = np.exp(draw.normal(np.where(label, 6.3, 7.5), 0.7)).astype(int) + 1
    found = columns(label.tolist(), (1 / length).tolist(), length.tolist())
    matched = found["matched"]
    assert VALUES["auc"](found) > 0.8 and 0.45 < VALUES["auc_length_matched"](found) < 0.55
    assert matched[label == 0].sum() == matched[label == 1].sum() > 50
    (metric,) = (m for m in metrics.METRICS if m.name == "auc_length_matched")
    assert (metric.row_selection(found) == matched).all(), "its n is that of the matched records"
    order = draw.permutation(len(label))
    ids = [f"r{i:04d}" for i in order]
    assert (metrics.length_matched_mask(ids, length[order].astype(float), label[order]) == matched[order]).all()


def test_metrics_name_one_primary_that_is_better_when_higher():
    assert [(m.name, m.direction) for m in metrics.METRICS if m.primary] == [("auc", "up")]
    assert {m.name: m.direction for m in metrics.METRICS}["brier"] == "down"


# --- simulator -------------------------------------------------------------------------------------------------------


def test_the_simulator_writes_the_same_bytes_again(simulated, tmp_path):
    simulate.simulate(sources.Simulation(genes=GENES), "domain", 7, tmp_path / "again")
    for location in simulated["domain"][0].all_locations():
        name = location.rsplit("/", 1)[1]
        assert (tmp_path / "again" / name).read_bytes() == Path(location).read_bytes()
    simulate.simulate(sources.Simulation(genes=GENES), "domain", 8, tmp_path / "other")
    assert (tmp_path / "other" / "coding.fa.gz").read_bytes() != (tmp_path / "again" / "coding.fa.gz").read_bytes()


def test_simulated_mrnas_hold_the_reading_frame_that_their_header_states(simulated):
    text = plain_text(simulated["domain"][0].coding[0])
    for header, body in (record.split("\n", 1) for record in text.split(">")[1:]):
        sequence = body.replace("\n", "")
        start, end = map(int, re.search(r"\|CDS:(\d+)-(\d+)\|", header).groups())
        codons = re.findall("...", sequence[start - 1 : end])
        assert codons[0] == "ATG" and codons[-1] in ("TAA", "TAG", "TGA") and (end - start + 1) % 3 == 0
        assert not {"TAA", "TAG", "TGA"} & set(codons[:-1]) and 200 <= len(sequence) <= 900
    isoforms = [header.split("|")[1] for header in text.split(">")[1:]]
    assert len(isoforms) > GENES == len(set(isoforms))


def test_populations_share_nothing_and_composition_carries_over_only_in_part(simulated):
    parts = {p: [r for s in SPLITS for r in read_split(folder, s)] for p, (_, folder) in simulated.items()}
    for column in ("id", "gene", "sequence"):
        assert not {r[column] for r in parts["general"]} & {r[column] for r in parts["domain"]}
    train, test = ([r for r in parts["domain"] if half_of(r["gene"]) == half] for half in (0, 1))
    within = scores(train, test)
    across = scores(parts["general"], test)
    assert 0.7 < within["kmer_frequency"] < 0.95 and across["kmer_frequency"] < within["kmer_frequency"] - 0.05
    assert 0.9 < within["orf_only"] < 1 and 0.65 < within["length_only"] < 0.95
    assert within["length_orf_kmer"] > within["kmer_frequency"]
    assert within["cpat_features"] > 0.9


def half_of(gene: str) -> int:
    """All isoforms of a gene are in the same half."""
    return int(gene[-1]) % 2


def scores(train, test) -> dict[str, float]:
    rows = task.baselines(train, test, sources.Task())
    return {system: VALUES["auc"](metrics.columns(found, test, None)) for system, found in rows.items()}


def test_shuffled_labels_teach_nothing(simulated):
    _, folder = simulated["domain"]
    records = [r for split in SPLITS for r in read_split(folder, split)]
    train, test = ([r for r in records if half_of(r["gene"]) == half] for half in (0, 1))
    genes = sorted({r["gene"] for r in train})  # isoforms keep one label, or the gene would be learnt through them
    given_label = dict(zip(genes, np.random.default_rng(3).permutation([i % 2 for i in range(len(genes))]).tolist()))
    shuffled = [{**r, "label": given_label[r["gene"]]} for r in train]
    assert 0.35 < scores(shuffled, test)["kmer_frequency"] < 0.65


# --- real transcripts ------------------------------------------------------------------------------------------------


def test_real_transcripts_repeat_the_known_shortcuts(shared_data, tmp_path):
    human = shared_data / "lncrna" / "human"
    files = sources.Files(
        coding=[str(human / "cpat_coding_mRNA.fa.gz")], noncoding=[str(human / "cpat_noncoding_RNA.fa.gz")]
    )
    dataset = sources.Dataset(max_records=600)
    build_dataset("lncrna", files, dataset, 0, tmp_path / "data")
    audit_split("lncrna", tmp_path / "data", dataset, tmp_path / "audit.json")
    card = read_json(tmp_path / "data" / "card.json")
    assert card["n_in"] == 4500 == card["n_kept"] + sum(card["n_rejected"].values())
    parts = {split: read_split(tmp_path / "data", split) for split in SPLITS}
    test = parts["train"]  # the larger part is scored: the shortcuts need few records to be learnt
    found = scores([r for split in ("gate", "valid", "test") for r in parts[split]], test)
    assert found["orf_only"] > 0.95 and 0.8 < found["length_only"] < 0.95
    assert found["cpat_features"] > 0.97
    rows = task.baselines(test, test, None)["length_only"]
    assert 0.45 < VALUES["auc_length_matched"](metrics.columns(rows, test, None)) < 0.55


@pytest.mark.parametrize(
    "path, records, genes",
    [
        ("human/gencode_lncRNA_transcripts.fa.gz", 1979, "ENSG"),
        ("human/ensembl_ncrna_lncRNA.fa.gz", 1200, "ENSG"),
        ("mouse/ensembl_protein_coding.fa.gz", 1200, "ENSMUSG"),
        ("fixtures/gencode_pc_transcripts_header_fixture.fa", 10, "ENSG"),
    ],
)
def test_real_header_dialects_are_read(shared_data, path, records, genes):
    ledger = Ledger()
    file, kind = shared_data / "lncrna" / path, "gencode" if "gencode" in path else "ensembl"
    options = sources.Dataset(min_length=1, max_length=10**6, max_ambiguous=0.99)
    for form in ("auto", kind):
        found = [record for _, record in build.read_transcripts(file, 1, form, {}, options, ledger)]
        assert len(found) == records
        assert all(re.fullmatch(genes + r"\d{11}", r["gene"]) and r["id"].startswith("ENS") for r in found)
        assert all(set(r["sequence"]) <= set("ACGTN") for r in found)


def test_sources_import_nothing_heavy():
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else name.name)
        for node in ast.walk(ast.parse(Path(sources.__file__).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported == {"typing", "pydantic", "loratory.domains.contract"}

"""Real data sets of ratings, written small in their original shapes, and whatever else a table may hold."""

import gzip
import json
import zipfile
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from loratory.data.files import TextDecoder
from loratory.data.ledger import Ledger
from loratory.domains.recsys import build, ratings, tables, task
from loratory.domains.recsys.layouts import LAYOUTS, TableLayout
from loratory.domains.recsys.sources import Dataset, Files, Task
from loratory.errors import InputError

LOOSE = Dataset(k_core=1, min_history=1)
COLD = Dataset(k_core=1, min_history=1, protocol="user_cold")


def read(files, dataset=LOOSE):
    ledger = Ledger(dataset.on_error)
    table = build.read(files, dataset, ledger)
    rows = [row for batch in table.batches() for row in batch.to_pylist()] if len(table) else []
    assert ledger.n_in == len(rows) + sum(ledger.reason_counts().values())
    return rows, ledger


def told(files, dataset=LOOSE):
    """[user, item, title, label, time, [(item, stars) of the past]] of each record."""
    return [
        [r["user"], r["item"], r["title"], r["label"], r["timestamp"], [*zip(r["history_items"], r["history_stars"])]]
        for r in read(files, dataset)[0]
    ]


def message(files, dataset=LOOSE):
    with pytest.raises(InputError) as caught:
        read(files, dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder, **texts):
    """Paths of files; `a__b` in a keyword is `a.b`."""
    paths = {}
    for name, text in texts.items():
        path = folder / name.replace("__", ".").replace("_0", "-")
        data = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        paths[name] = str(path)
    return paths


# --- the data sets


def test_movielens_1m_has_codes_of_ages_and_latin_titles(tmp_path):
    flat = write(
        tmp_path,
        ratings__dat="1::10::5::100\n1::11::3::200\n2::10::2::100\n2::11::4::300\n",
        movies__dat="10::Léon: The Professional (1994)::Crime\n11::Amélie (2001)::Comedy\n".encode("latin-1"),
        users__dat="1::M::25::12::55117\n2::F::56::1::48067\n",
    )
    files = Files(ratings=flat["ratings__dat"], items=flat["movies__dat"], users=flat["users__dat"])
    assert told(files) == [
        ["1", "11", "Amélie (2001)", 0, 200, [("10", 5.0)]],
        ["2", "11", "Amélie (2001)", 1, 300, [("10", 2.0)]],
    ]
    assert [r["profile"] for r in read(files)[0]] == [
        "Sex: male. Age: 25-34. Occupation: programmer.",
        "Sex: female. Age: over 55. Occupation: academic or educator.",
    ]
    assert task.record_prompt(read(files)[0][0], Task()).startswith("Sex: male. Age: 25-34. Occupation: programmer.\n")


def test_movielens_100k_has_ages_in_years(tmp_path):
    flags = "|".join("0" * 19)
    ages = (18, 24, 25, 56)
    flat = write(
        tmp_path,
        u__data="".join(f"{u}\t{i}\t{1 + 4 * (u % 2)}\t{100 * i}\n" for u in range(4) for i in (1, 2)),
        u__item=f"1|Léon (1994)|01-Jan-1994||http://x|{flags}\n2|Heat (1995)|d||u|{flags}\n".encode("latin-1"),
        u__user="".join(f"{u}|{age}|F|writer|94043\n" for u, age in enumerate(ages)),
    )
    records, _ = read(Files(ratings=flat["u__data"], items=flat["u__item"], users=flat["u__user"]))
    assert [r["profile"] for r in records] == [f"Sex: female. Age: {age}. Occupation: writer." for age in ages]
    assert records[0]["history_titles"] == ["Léon (1994)"]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_movielens_10m_is_utf_8_and_1m_is_not_and_a_mistake_is_told(tmp_path, encoding):
    flat = write(
        tmp_path,
        ratings__dat="1::10::5::100\n1::11::3.5::200\n2::10::2::100\n2::11::4::300\n",
        movies__dat="10::Heat (1995)::Crime\n11::Amélie (2001)::Comedy\n".encode(encoding),
    )
    right, wrong = ("movielens_10m", "movielens_1m")[:: 1 if encoding == "utf-8" else -1]
    files = {"ratings": flat["ratings__dat"], "items": flat["movies__dat"]}
    assert told(Files(**files, format=right))[0][2] == "Amélie (2001)"
    text = message(Files(**files, format=wrong))
    expected = {
        "utf-8": "movies.dat:2: the text is UTF-8, and would be misread as latin-1; expected UTF-8; fix: set `",
        "latin-1": "movies.dat:2: not utf-8 at byte 6 of the line",
    }
    assert expected[encoding] in text


def test_amazon_reviews_and_metadata_as_json_and_as_python_writes_it(tmp_path):
    reviews = [("A1", "B01", 5.0, 1300000000), ("A1", "B02", 2.0, 1300086400), ("A2", "B02", 4.0, 1200000000)]
    reviews += [("A2", "B01", 4.0, 1200000001)]
    lines = "".join(
        json.dumps(
            {
                "reviewerID": user,
                "asin": item,
                "reviewText": 'It\'s\n"good"',
                "overall": stars,
                "unixReviewTime": time,
                "helpful": [0, 1],
            }
        )
        + "\n"
        for user, item, stars, time in reviews
    )
    meta = "{'asin': 'B01', 'title': u'Bob\\'s \"Lamp\"', 'related': {'a': ['x']}}\n"
    meta += '{"asin": "B02", "title": "Desk"}\n'
    flat = write(tmp_path, reviews__json__gz=lines, meta__json__gz=meta)
    files = Files(ratings=flat["reviews__json__gz"], items=flat["meta__json__gz"], format="amazon")
    assert told(files) == [
        ["A1", "B02", "Desk", 0, 1300086400, [("B01", 5.0)]],
        ["A2", "B01", 'Bob\'s "Lamp"', 1, 1200000001, [("B02", 4.0)]],
    ]


def test_amazon_2023_tells_milliseconds(tmp_path):
    rows = [("A", "P1", 5.0, 1588687728923), ("A", "P2", 4.0, 1588687729000), ("A", "P3", 1.0, 1588687730999)]
    lines = "".join(
        json.dumps({"rating": s, "title": "wow", "asin": "v", "parent_asin": i, "user_id": u, "timestamp": t}) + "\n"
        for u, i, s, t in rows
    )
    meta = "".join(
        json.dumps({"title": f"Thing {i}", "parent_asin": f"P{i}", "price": None}) + "\n" for i in (1, 2, 3)
    )
    flat = write(tmp_path, r__jsonl=lines, m__jsonl=meta)
    files = Files(ratings=flat["r__jsonl"], items=flat["m__jsonl"], format="amazon_2023")
    assert [row[4] for row in told(files)] == [1588687729, 1588687730]
    assert (
        "r.jsonl:1: timestamp looks like milliseconds (1588687728923); expected seconds since 1970; fix: set `time: "
        in (message(files.model_copy(update={"time": "seconds"})))
    )


def test_goodreads_dates_are_english_and_0_is_unrated(tmp_path):
    rows = [
        ("u1", "7", 5, "Wed Mar 22 11:37:04 -0700 2017"),
        ("u1", "8", 2, "Thu Mar 23 00:00:00 +0000 2017"),
        ("u1", "9", 0, "Fri Mar 24 00:00:00 +0000 2017"),
        ("u1", "10", 4, "Fri Mar 24 00:00:00 +0530 2017"),
    ]
    lines = "".join(
        json.dumps({"user_id": u, "book_id": b, "review_id": "x", "is_read": True, "rating": r, "date_added": d})
        + "\n"
        for u, b, r, d in rows
    )
    books = "".join(
        json.dumps({"book_id": str(b), "title": "Emma", "title_without_series": ""}) + "\n" for b in range(7, 11)
    )
    flat = write(tmp_path, interactions__json__gz=lines, books__json__gz=books)
    files = Files(ratings=flat["interactions__json__gz"], items=flat["books__json__gz"], format="goodreads")
    records, ledger = read(files)
    assert ledger.reason_counts() == {"short_history": 1, "unrated": 1}
    assert [(r["item"], r["timestamp"], r["history_items"]) for r in records] == [
        ("10", 1490293800, ["7", "8"]),
        ("8", 1490227200, ["7"]),
    ]
    assert {r["title"] for r in records} == {"Emma"}, "books of one title are different books"


def test_book_crossing_has_no_times_semicolons_escapes_and_nulls(tmp_path):
    ratings_text = '"User-ID";"ISBN";"Book-Rating"\n' + "".join(
        f'"{u}";"{b}";"{r}"\n'
        for u in range(1, 9)
        for b, r in (("034545104X", 0), ("0155061224", 8), ("0446520802", 3), ("052165615X", 10))
    )
    books = (
        '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication"\n'
        '"034545104X";"Flesh Tones: A Novel";"M. J. Rose";"2002"\n'
        '"0155061224";"Rites of Passage \\"new\\"; again";"Judith Rae";"2001"\n'
        '"0446520802";"The Notebook é";"Nicholas Sparks";"1996"\n'
        '"052165615X";"Help!: Level 1";"Philip Prowse";"1999"\n'
    )
    users = '"User-ID";"Location";"Age"\n' + "".join(
        f'"{u}";"tyler, texas, usa";{"NULL" if u == 1 else chr(34) + "18" + chr(34)}\n' for u in range(1, 9)
    )
    flat = write(
        tmp_path,
        BX_0Book_0Ratings__csv=ratings_text.encode("latin-1"),
        BX_0Books__csv=books.encode("latin-1"),
        BX_0Users__csv=users,
    )
    files = Files(
        ratings=flat["BX_0Book_0Ratings__csv"],
        items=flat["BX_0Books__csv"],
        users=flat["BX_0Users__csv"],
        format="book_crossing",
    )
    records, ledger = read(files, COLD)
    assert ledger.reason_counts() == {"short_history": 8, "unrated": 8}
    first = records[0]
    assert (first["user"], first["label"], first["profile"]) == ("1", 0, "Home: tyler, texas, usa.")
    assert first["history_titles"] == ['Rites of Passage "new"; again'] and first["title"] == "The Notebook é"
    assert records[2]["profile"] == "Age: 18. Home: tyler, texas, usa."
    text = message(files)
    assert "the ratings have no times, so no split by time is possible (protocol: time)" in text
    assert "expected `dataset.protocol: user_cold`" in text


def test_lastfm_counts_want_to_know_how_many_plays_are_liking(tmp_path):
    rows = [
        ("u1", "a1", "Björk", 2137),
        ("u1", "a2", "die Ärzte", 12),
        ("u2", "a1", "Björk", 3),
        ("u2", "a2", "x", 900),
    ]
    flat = write(tmp_path, plays__tsv="".join(f"{u}\t{a}\t{n}\t{p}\n" for u, a, n, p in rows))
    files = Files(ratings=flat["plays__tsv"], format="lastfm_360k")
    counts = COLD.model_copy(update={"positive": 100})
    found = told(files, counts)
    assert [row[:4] for row in found] == [["u1", "a2", "die Ärzte", 0], ["u2", "a2", "die Ärzte", 1]]
    assert found[0][5] == [("a1", 2137.0)]
    assert "nothing says which ratings count as liking; expected `dataset.positive`" in message(files, COLD)
    many = {"task": Task(event="- {title} ({rating} plays)"), "records": read(files, counts)[0]}
    assert "- Björk (2137 plays)" in task.record_prompt(many["records"][0], many["task"])
    flat = write(
        tmp_path,
        user_artists__dat="userID\tartistID\tweight\n2\t51\t13883\n2\t52\t1\n3\t51\t4\n3\t52\t400\n",
        artists__dat='id\tname\turl\tpictureURL\n51\tDuran "Duran\thttp\tp\n52\tMorcheeba\th\tp\n',
    )
    files = Files(ratings=flat["user_artists__dat"], items=flat["artists__dat"], format="lastfm_2k")
    assert [row[2:4] for row in told(files, counts)] == [["Morcheeba", 0], ["Morcheeba", 1]]


def test_listening_events_are_choices_beside_which_items_are_drawn(tmp_path):
    rows = [
        (f"user_{u}", f"2009-05-0{1 + n}T23:0{n}:57Z", f"a{(u + n) % 7}", f"Artist {(u + n) % 7}")
        for u in range(5)
        for n in range(4)
    ]
    text = "".join(f"{u}\t{t}\t{a}\t{n}\tt{i}\tSong\n" for i, (u, t, a, n) in enumerate(rows))
    flat = write(tmp_path, lastfm__tsv=text)
    files = Files(ratings=flat["lastfm__tsv"], format="lastfm_1k")
    assert "there are choices alone, and nothing that was not liked; expected `dataset.negatives`" in message(files)
    records, ledger = read(files, LOOSE.model_copy(update={"negatives": 2}))
    chosen, drawn = ([r for r in records if r["label"] == label] for label in (1, 0))
    assert len(chosen) == 15 and ledger.n_changed == {"drawn_as_not_chosen": len(drawn)} and len(drawn) > 10
    own = {user: {a for u, _, a, _ in rows if u == user} for user, *_ in rows}
    first = {a: min(t for _, t, b, _ in rows if a == b) for _, _, a, _ in rows}
    for record in drawn:
        assert record["item"] not in own[record["user"]] and record["rating"] == 0
        twin = next(r for r in chosen if (r["user"], r["timestamp"]) == (record["user"], record["timestamp"]))
        assert twin["history_items"] == record["history_items"]
        assert ratings.parse_time(first[record["item"]], "iso") <= record["timestamp"], "it was there to be chosen"
    assert len({r["id"] for r in records}) == len(records)
    assert read(files, LOOSE.model_copy(update={"negatives": 2}))[0] == records


def test_retailrocket_kinds_of_events_are_ratings_and_items_are_named_by_their_ids(tmp_path):
    rows = [
        (1433221332117, 257597, "view", 355908, ""),
        (1433221332118, 257597, "view", 355908, ""),  # again within the second
        (1433224214164, 257597, "addtocart", 248676, ""),
        (1433224214999, 992329, "view", 248676, ""),
        (1433225000000, 992329, "transaction", 355908, 4000),
        (1433226000000, 992329, "view", 5, ""),
    ]
    text = "timestamp,visitorid,event,itemid,transactionid\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    files = Files(ratings=write(tmp_path, events__csv=text)["events__csv"], format="retailrocket")
    assert told(files) == [
        ["257597", "248676", "248676", 1, 1433224214, [("355908", 1.0)]],
        ["992329", "355908", "355908", 1, 1433225000, [("248676", 1.0)]],
        ["992329", "5", "5", 0, 1433226000, [("248676", 1.0), ("355908", 3.0)]],
    ]
    bad = write(tmp_path, odd__csv=text.replace("addtocart", "wishlist"))["odd__csv"]
    text = message(files.model_copy(update={"ratings": bad}))
    assert "odd.csv:4: unknown kind of event (wishlist); expected view, addtocart, transaction; fix: list it" in text


def test_goodbooks_rows_stand_for_times(tmp_path):
    text = "user_id,book_id,rating\n1,258,5\n2,258,1\n1,260,3\n2,260,4\n1,268,4\n"
    books = "book_id,goodreads_book_id,title\n" + "".join(f'{b},1,"The {b}, a Book"\n' for b in (258, 260, 268))
    flat = write(tmp_path, ratings__csv=text, books__csv=books)
    files = Files(ratings=flat["ratings__csv"], items=flat["books__csv"], format="goodbooks")
    assert told(files) == [
        ["1", "260", "The 260, a Book", 0, 4, [("258", 5.0)]],
        ["1", "268", "The 268, a Book", 1, 6, [("258", 5.0), ("260", 3.0)]],
        ["2", "260", "The 260, a Book", 1, 5, [("258", 1.0)]],
    ]
    archive = tmp_path / "goodbooks.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for name in ("ratings.csv", "books.csv", "to_read.csv"):
            out.writestr(f"goodbooks-10k/{name}", (tmp_path / name).read_text() if "to" not in name else "")
    assert told(Files(ratings=str(archive), format="goodbooks")) == told(files)


def test_real_goodbooks_read(shared_data):
    folder = shared_data / "recsys" / "goodbooks-10k_samples"
    files = Files(ratings=str(folder / "ratings.csv"), items=str(folder / "books.csv"), format="goodbooks")
    loose = LOOSE.model_copy(update={"on_error": "skip", "max_reject_fraction": 1.0})
    _, ledger = read(files, loose)
    assert ledger.n_in == 99


# --- any table

WANTED = [["a", "x", "x", 0, 200, [("y", 9.0)]], ["b", "y", "y", 1, 500, [("x", 2.0)]]]
OWN = {"columns": {"user": "who", "item": "sku", "rating": "score", "time": "when"}}
TABLE = {"format": "table", "ratings_table": OWN, "scale": [1, 10, 1]}
ROWS = [("a", "y", 9, 100), ("a", "x", 3, 200), ("b", "x", 2, 400), ("b", "y", 7, 500)]
TENS = Dataset(k_core=1, min_history=1, positive=6)


@pytest.mark.parametrize("mark", [",", ";", "\t", "|", "~~"])
def test_any_table_reads_by_the_names_of_its_columns(tmp_path, mark):
    text = mark.join(("when", "note", "sku", "who", "score")) + "\n"
    text += "".join(mark.join((str(t), "-", i, u, str(s))) + "\r\n" for u, i, s, t in ROWS)
    flat = write(tmp_path, log__txt=b"\xef\xbb\xbf" + text.encode())
    separator = {"separator": mark} if mark in "|~~" else {}
    assert told(Files(ratings=flat["log__txt"], **TABLE | {"ratings_table": OWN | separator}), TENS) == WANTED


def test_any_parquet_and_any_json_lines_read_by_the_names_of_their_columns(tmp_path):
    users, items, scores, times = zip(*ROWS)
    table = pa.table(
        {"who": users, "sku": pa.array(items).dictionary_encode(), "score": scores, "when": times, "z": times}
    )
    pq.write_table(table, tmp_path / "log.parquet")
    assert told(Files(ratings=str(tmp_path / "log.parquet"), **TABLE), TENS) == WANTED
    lines = "".join(json.dumps({"who": u, "sku": i, "score": s, "when": t}) + "\n" for u, i, s, t in ROWS)
    assert told(Files(ratings=write(tmp_path, a__json=lines)["a__json"], **TABLE), TENS) == WANTED


def test_fields_of_a_file_without_a_header_are_named_in_the_config(tmp_path):
    flat = write(tmp_path, ratings__csv="".join(f"{i},{u},{s},{t}\n" for u, i, s, t in ROWS))
    layout = {"fields": ["sku", "who", "score", "when"]} | OWN
    assert told(Files(ratings=flat["ratings__csv"], **TABLE | {"ratings_table": layout}), TENS) == WANTED


@pytest.mark.parametrize(
    ("clock", "written", "seconds"),
    [
        ("seconds", "1548936000", 1548936000),
        ("seconds", "1548936000.0", 1548936000),
        ("milliseconds", "1548936000999", 1548936000),
        ("iso", "2019-01-31T12:00:00Z", 1548936000),
        ("iso", "2019-01-31T14:00:00+02:00", 1548936000),
        ("iso", "2019-01-31 12:00:00", 1548936000),
        ("iso", "2019-01-31", 1548892800),
        ("english", "Thu Jan 31 12:00:00 +0000 2019", 1548936000),
        ("english", "Thu Jan 31 06:30:00 -0530 2019", 1548936000),
    ],
)
def test_times_are_read_as_they_are_written(tmp_path, clock, written, seconds):
    text = "user,item,rating,timestamp\n" + "".join(
        f"{u},{i},{s},{written}\n" for u, i, s in (("a", "x", 1), ("b", "y", 5))
    )
    files = Files(ratings=write(tmp_path, t__csv=text)["t__csv"], format="table", time=clock)
    reader = ratings.RatingReader(files.ratings, files.layout, Ledger())
    assert reader.read().time.tolist() == [seconds] * 2


@pytest.mark.parametrize(
    ("clock", "written", "what"),
    [
        ("seconds", "9" * 5000, "timestamp (9999"),
        (
            "seconds",
            "1548936000999",
            "timestamp looks like milliseconds (1548936000999); expected seconds since 1970; fix",
        ),
        ("seconds", "2019-01-31", "timestamp (2019-01-31); expected whole seconds since 1970; fix: set `time:`"),
        ("seconds", "٣٤", "timestamp (٣٤); expected whole seconds"),
        ("seconds", "", "timestamp ('')"),
        (
            "milliseconds",
            "1548936000",
            "timestamp looks like seconds (1548936000); expected milliseconds since 1970; fix",
        ),
        ("milliseconds", "4102444801000", "timestamp out of range (4102444801000)"),
        ("iso", "2019-13-01", "timestamp (2019-13-01); expected a date such as 2019-01-31T12:00:00Z"),
        ("iso", "31.01.2019", "timestamp (31.01.2019)"),
        ("iso", "1969-12-31", "timestamp out of range (1969-12-31)"),
        (
            "english",
            "Thu Foo 31 12:00:00 +0000 2019",
            "timestamp (Thu Foo 31 12:00:00 +0000 2019); expected a date such as",
        ),
        ("english", "", "timestamp ('')"),
    ],
)
def test_times_that_are_not_written_so_are_named_by_their_line(tmp_path, clock, written, what):
    rows = f"a,x,1,{written}\n"
    files = Files(
        ratings=write(tmp_path, t__csv="user,item,rating,timestamp\n" + rows)["t__csv"], format="table", time=clock
    )
    text = message(files)
    assert text.startswith(f"{files.ratings}:2: ") and what in text


@pytest.mark.parametrize(
    ("scale", "written", "fine"),
    [
        ([1, 10, 1], "10", True),
        ([1, 10, 1], "0", False),
        ([1, 10, 1], "7.5", False),
        ([0, 100, 0.1], "33.3", True),
        ([0, 100, 0.1], "33.35", False),
        ([-10, 10, 0.25], "-9.75", True),
        ("counts", "123456", True),
        ("counts", "0.5", True),
        ("counts", "0", False),
        ("counts", "-3", False),
        ("counts", "inf", False),
        ("counts", "1_000", False),
        ("counts", "nan", False),
    ],
)
def test_ratings_are_held_against_their_scale(tmp_path, scale, written, fine):
    path = write(tmp_path, s__csv=f"user,item,rating,timestamp\na,x,{written},5\n")["s__csv"]
    files = Files(ratings=path, format="table", scale=scale)
    reader = ratings.RatingReader(path, files.layout, Ledger())
    if fine:
        assert reader.read().stars().tolist() == [float(written)]
    else:
        with pytest.raises(InputError, match=r"s\.csv:2: (rating|count) \("):
            reader.read()


def test_ratings_that_are_all_one_are_choices_and_the_message_says_so(tmp_path):
    text = "userId,movieId,rating,timestamp\n" + "".join(
        f"{u},{(u * n) % 11},1,{n}\n" for u in range(1, 5) for n in range(1, 7)
    )
    titles = "movieId,title\n" + "".join(f"{i},Film {i}\n" for i in range(11))
    flat = write(tmp_path, ratings__csv=text, movies__csv=titles)
    files = Files(ratings=flat["ratings__csv"], items=flat["movies__csv"])
    text = message(files)
    assert "all ratings are 1: they tell what was chosen, and not how it was liked" in text
    assert "fix: set `dataset.negatives`, such as 1, with `positive: 1`" in text
    assert "`dataset.positive` 0.5 tells no two ratings apart" in message(
        files, LOOSE.model_copy(update={"positive": 0.5})
    )
    records, _ = read(files, LOOSE.model_copy(update={"positive": 1, "negatives": 1}))
    assert {r["label"] for r in records} == {0, 1}


def test_a_table_of_choices_needs_no_column_of_ratings(tmp_path):
    text = "user,item,timestamp\n" + "".join(f"{u},{(u + n) % 9},{n}\n" for u in range(9) for n in range(4))
    given = {"format": "table", "ratings_table": {"columns": {"rating": None}}}
    files = Files(ratings=write(tmp_path, c__csv=text)["c__csv"], **given)
    records, _ = read(files, LOOSE.model_copy(update={"negatives": 1}))
    assert {r["rating"] for r in records if r["label"]} == {1.0} and {r["label"] for r in records} == {0, 1}


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"ratings_table": {"columns": {"time": None}}}, "`time: seconds` needs a column of times"),
        ({"time": "rows"}, "`time: rows` goes with no column of times, but there is `timestamp`"),
        ({"ratings_table": {"columns": {"user": None}}}, "ratings_table: the column of the user is missing"),
        ({"ratings_table": {"columns": {"stars": "s"}}}, "ratings_table: no such column `stars`; expected user, item"),
        ({"items_table": {"columns": {"item": None}}}, "items_table: the column of the item is missing"),
        ({"scale": [5, 1, 1]}, "no scale in [5.0, 1.0, 1.0]"),
        ({"scale": [1, 5, 0]}, "no scale in [1.0, 5.0, 0.0]"),
        ({"users": "u.csv"}, "`users` has no column to tell"),
        ({"encoding": "utf-16"}, "text encoding `utf-16` writes no ASCII"),
        ({"encoding": "utf-32-le"}, "text encoding `utf-32-le` writes no ASCII"),
        ({"encoding": "cp037"}, "text encoding `cp037` writes no ASCII"),
        ({"encoding": "hex"}, "unknown text encoding `hex`"),
        ({"format": "netflix"}, "movielens"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_with_the_config(given, what):
    with pytest.raises(ValidationError) as caught:
        Files(ratings="r.csv", **{"format": "table"} | given)
    assert what in str(caught.value)


def test_every_layout_holds_together():
    for layout in LAYOUTS.values():
        layout.check_columns()


# --- what is wrong with a file


def test_a_bom_is_no_part_of_the_first_column_in_every_kind_of_file(tmp_path):
    csv = "\ufeffuserId,movieId,rating,timestamp\n1,10,4.0,1\n1,11,3.0,2\n1,12,5.0,3\n"
    titles = "\ufeffmovieId,title\n10,A\n11,B\n12,C\n"
    flat = write(tmp_path, ratings__csv=csv, movies__csv=titles)
    expected = told(Files(ratings=flat["ratings__csv"], items=flat["movies__csv"]))
    assert [row[1] for row in expected] == ["11", "12"]
    archive = tmp_path / "ml.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for name in ("ratings.csv", "movies.csv"):
            out.write(tmp_path / name, name)
    assert told(Files(ratings=str(archive))) == expected
    json_lines = "\ufeff" + "".join(
        json.dumps(dict(zip(("user", "item", "rating", "timestamp"), row))) + "\n" for row in ROWS
    )
    assert (
        len(
            told(Files(ratings=write(tmp_path, a__json=json_lines)["a__json"], format="table", scale=[1, 10, 1]), TENS)
        )
        == 2
    )


@pytest.mark.parametrize("name", ["movies.csv", "ratings.csv"])
def test_utf_8_that_is_said_to_be_latin_1_is_refused_in_every_table(tmp_path, name):
    texts = {
        "ratings.csv": "userId,movieId,rating,timestamp,tag\n1,10,4.0,1,\n1,11,3.0,2,\n",
        "movies.csv": "movieId,title\n10,A\n11,Leon\n",
    }
    texts[name] = texts[name].replace("11,Leon", "11,Léon").replace("4.0,1,", "4.0,1,é")
    for each, text in texts.items():
        (tmp_path / each).write_text(text)
    files = Files(ratings=str(tmp_path / "ratings.csv"), items=str(tmp_path / "movies.csv"), encoding="latin-1")
    assert f"{name}:" in message(files) and "the text is UTF-8, and would be misread as latin-1" in message(files)


def test_one_line_that_is_no_utf_8_makes_the_rest_latin_1():
    decoder = TextDecoder("movies.csv", "latin-1")
    assert [decoder.decode_line(line.encode(), n) for n, line in enumerate(("Leon", "LÃ©on"))] == [
        "Leon",
        "LÃ\x83Â©on",
    ]
    assert decoder.decode_line(b"Am\xe9lie\r", 3) == "Amélie"
    decoder.check_encoding()


def test_an_archive_of_thousands_of_members_is_told_in_a_line(tmp_path):
    archive, titles = tmp_path / "big.zip", write(tmp_path, movies__csv="movieId,title\n1,A\n")["movies__csv"]
    with zipfile.ZipFile(archive, "w") as out:
        for n in range(3000):
            out.writestr(f"part{n:04d}/rows.csv", "x")
    text = message(Files(ratings=f"{archive}!ratings.csv", items=titles))
    assert text.endswith(
        "no such member (ratings.csv); expected one of part0000/rows.csv, part0001/rows.csv, "
        "part0002/rows.csv and 2997 more"
    )
    text = message(Files(ratings=f"{archive}!rows.csv", items=titles))
    assert "and 2997 more" in text and len(text) < 300
    with zipfile.ZipFile(archive, "w") as out:
        for n in range(300):
            out.writestr(f"part{n:03d}/ratings.csv", "x")
    assert "300 members of the archive could be the ratings" in message(Files(ratings=str(archive)))
    assert len(message(Files(ratings=str(archive)))) < 400


def test_a_member_whose_local_header_is_damaged_is_told(tmp_path):
    held = BytesIO()
    with zipfile.ZipFile(held, "w") as out:
        out.writestr("ratings.csv", "userId,movieId,rating,timestamp\n1,10,4.0,1\n")
        out.writestr("movies.csv", "movieId,title\n10,A\n")
    broken = bytearray(held.getvalue())
    broken[0:4] = b"XXXX"
    (tmp_path / "ml.zip").write_bytes(broken)
    text = message(Files(ratings=str(tmp_path / "ml.zip")))
    assert "member is damaged (ratings.csv: " in text or "not a zip archive, or damaged" in text


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"user": "a", "item": "x", "rating": 5', "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        ("{'user': 'a', __import__('os')}", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        (
            '{"user": "a", "item": "x", "timestamp": 5}',
            "no key `rating` (user, item, timestamp); expected user, item, rating",
        ),
        ('{"user": null, "item": "x", "rating": 5, "timestamp": 5}', "malformed id ('')"),
        ('{"user": "a", "item": "x", "rating": [5], "timestamp": 5}', "rating ([5])"),
        ('{"user": "a", "item": "x", "rating": 5, "timestamp": ' + "9" * 5000 + "}", "not a JSON object"),
    ],
)
def test_a_bad_line_of_json_is_named_and_skipped_on_request(tmp_path, line, what):
    lines = [json.dumps(dict(zip(("user", "item", "rating", "timestamp"), row))) for row in ROWS]
    path = write(tmp_path, a__jsonl="\n".join([*lines[:2], line, "", *lines[2:]]))["a__jsonl"]
    files = Files(ratings=path, format="table", scale=[1, 10, 1])
    text = message(files, TENS)
    assert text.startswith(f"{path}:3: ") and what in text
    skipped, ledger = read(files, TENS.model_copy(update={"on_error": "skip"}))
    assert len(skipped) == 2 and ledger.n_malformed == 1


def test_a_json_array_and_a_damaged_parquet_are_refused(tmp_path):
    flat = write(tmp_path, a__json=json.dumps([{"user": "a"}]), b__parquet=b"PAR1 and no more")
    assert "a.json: a JSON array; expected JSON lines" in message(Files(ratings=flat["a__json"], format="table"))
    assert "b.parquet: the file is damaged" in message(Files(ratings=flat["b__parquet"], format="table"))


def test_a_column_that_is_missing_is_named_with_what_there_is(tmp_path):
    path = write(tmp_path, log__csv="uid,item,rating,timestamp\n1,2,3,4\n")["log__csv"]
    text = message(Files(ratings=path, format="table"))
    assert f"{path}:1: no column `user` (uid,item,rating,timestamp); expected user,item,rating,timestamp" in text
    assert "fix: say which column it is, as `columns: {user: …}`" in text


def test_an_item_without_a_title_is_an_error_or_its_ratings_are_skipped(tmp_path):
    flat = write(
        tmp_path,
        ratings__csv="userId,movieId,rating,timestamp\n1,10,4.0,1\n1,11,3.0,2\n1,12,5.0,3\n1,13,2.0,4\n",
        movies__csv="movieId,title\n10,A\n11,  \n12,C\n13,D\n",
    )
    files = Files(ratings=flat["ratings__csv"], items=flat["movies__csv"])
    assert "movies.csv:3: item without a title (11); expected a title" in message(files)
    records, ledger = read(files, LOOSE.model_copy(update={"on_error": "skip", "positive": 4.5, "min_history": 1}))
    assert [r["item"] for r in records] == ["12", "13"] and ledger.reason_counts() == {
        "short_history": 1,
        "unknown_item": 1,
    }


# --- Arrow and row by row

PLAIN = "user,item,rating,timestamp\n" + "".join(
    f"u{n % 50},i{n % 7 * (n % 11)},{1 + n % 5},{n}\n" for n in range(5000)
)


@pytest.mark.parametrize(
    "odd", ["", "u1,i1,4,77\r\n", '"u1","i 1",4,77\n', "u1,i1,4\n", "\n", "ü1,i1,4,77\n", "u1,i1,4,77,\n"]
)
def test_a_block_reads_alike_by_arrow_and_row_by_row(tmp_path, monkeypatch, odd):
    lines = PLAIN.splitlines(keepends=True)
    path = write(tmp_path, log__csv="".join([*lines[:3000], odd, *lines[3000:]]))["log__csv"]
    files = Files(ratings=path, format="table")

    def rows(block, plain):
        with monkeypatch.context() as patch:
            patch.setattr(tables, "BLOCK", block)
            if not plain:
                patch.setattr(tables, "plain_chunk", lambda *_: None)
            ledger = Ledger("skip")
            reader = ratings.RatingReader(path, files.layout, ledger)
            found = reader.read()
        names = [(found.users[u], found.items[i]) for u, i in zip(found.user, found.item)]
        return names, found.stars().tolist(), found.time.tolist(), found.line.tolist(), sorted(ledger.rows)

    whole = rows(1 << 23, True)
    assert rows(1 << 23, False) == whole
    assert rows(1000, True) == whole


def test_a_clean_file_goes_through_arrow(tmp_path, monkeypatch):
    path = write(tmp_path, log__csv=PLAIN)["log__csv"]
    monkeypatch.setattr(tables, "text_rows", None)
    layout = TableLayout(columns={"user": "user"}, fields=("user", "item", "rating", "timestamp"))
    (chunk,) = tables.read_chunks(path, layout, "utf-8", "ratings", None)
    assert len(chunk.lines) == 5001 and chunk.columns["user"][1].as_py() == "u0"


def test_a_million_ratings_take_little_memory_and_keep_no_text():
    n = 1_000_000
    rng = np.random.default_rng(0)
    columns = {
        "user": rng.integers(0, 1000, n).astype(np.int32),
        "item": rng.integers(0, 500, n).astype(np.int32),
        "value": np.ones(n, np.float32),
        "time": rng.integers(0, 1 << 30, n).astype(np.uint32),
        "line": np.arange(n, dtype=np.int32),
    }
    table = ratings.Ratings(**columns, users=[""] * 1000, items=[""] * 500, location="x")
    assert sum(getattr(table, name).nbytes for name in ratings.COLUMNS) == 20 * n
    expected = np.lexsort([columns[name] for name in ("line", "value", "item", "time", "user")])
    expected = {name: column[expected].copy() for name, column in columns.items()}
    ratings.sort_ratings(table)
    assert all((getattr(table, name) == expected[name]).all() for name in ratings.COLUMNS)

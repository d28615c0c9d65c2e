"""How public data sets of ratings are written: one table of facts, which a config may change key by key.

Imported while the config is read: pydantic and the contract only.
"""

from typing import Annotated, Literal

from pydantic import Field

from loratory.domains.contract import Options, Text

Clock = Literal["seconds", "milliseconds", "iso", "english", "rows", "none"]
Quotes = Literal["doubled", "backslash", "none"]
Scale = Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
ROLES = {"ratings": ("user", "item", "rating", "time", "title"), "items": ("item", "title")}
NEEDED = {"ratings": ("user", "item"), "items": ("item", "title"), "users": ("user",)}


class TableLayout(Options):
    """How one file is written; what is left out is as the format has it. Parquet and JSON lines are told by their
    content and need `columns` alone."""

    separator: str | None = Field(
        None,
        min_length=1,
        max_length=4,
        description="between fields; null: told by the first line",
    )
    fields: tuple[Text, ...] | None = Field(None, description="names of the fields of a file without a header")
    quotes: Quotes | None = Field(
        None,
        description='a `"` inside a quoted field is `""` (doubled) or `\\"` (backslash); none: quotes are letters',
    )
    columns: dict[str, Text | None] = Field(
        {},
        description="{what: its column}: of ratings user, item, rating, time, title; of items item, title; of users"
        " user, and any words, such as Age, that the prompt says of the user. null: there is no such column",
    )
    values: dict[str, dict[str, str]] = Field({}, description="{what: {value: how the prompt says it}}, of users")

    def overlay(self, changes: "TableLayout") -> "TableLayout":
        """This layout with what another one says."""
        given = {name: value for name, value in changes if value is not None and value != {}}
        given |= {name: getattr(self, name) | given[name] for name in ("columns", "values") if name in given}
        return self.model_copy(update=given)

    def column_names(self) -> dict[str, str]:
        """{what: column} of what the table has."""
        return {role: name for role, name in self.columns.items() if name is not None}


class Layout(Options):
    """The facts of a data set.

    Attributes:
        names: the public names of each table's file, by which it is found in an archive.
        untitled: items may have no title of their own; their id stands in the prompt.
        scale: lowest and highest rating and the step between them; None: any number above 0, such as a count.
        unrated: the number that means that nothing was rated.
        events: {kind of event: the number that it counts as}, where there are kinds in place of ratings.
        time: what times are written in; `rows`: there are none, but the rows are in order of time; `none`: nothing is
            known of their order.
        positive: the fewest that counts as liking; None: whoever takes the data has to say.
    """

    ratings: TableLayout
    items: TableLayout = TableLayout()
    users: TableLayout = TableLayout()
    names: dict[str, tuple[str, ...]] = Field({})
    encoding: str = "utf-8"
    untitled: bool = False
    scale: Scale | None = None
    unrated: float | None = None
    events: dict[str, float] = Field({})
    time: Clock = "seconds"
    positive: float | None = 4.0

    def check_columns(self) -> None:
        """Raises:
        ValueError: a column is missing or unknown, or goes ill with the rest.
        """
        if ("time" in self.ratings.column_names()) == (self.time in ("rows", "none")):
            known = self.ratings.column_names().get("time")
            raise ValueError(
                f"`time: {self.time}` goes with no column of times, but there is `{known}`; expected "
                "`ratings_table: {columns: {time: null}}`"
                if known
                else f"`time: {self.time}` needs a column of times; expected `ratings_table: {{columns: {{time: …}}}}`"
                ", or `time: rows` where rows are in order of time, or `time: none`"
            )
        for table, needed in NEEDED.items():
            columns = getattr(self, table).columns
            for role in columns:
                if table in ROLES and role not in ROLES[table]:
                    raise ValueError(f"{table}_table: no such column `{role}`; expected {', '.join(ROLES[table])}")
            lost = [role for role in needed if columns and not columns.get(role)]
            if lost:
                raise ValueError(f"{table}_table: the column of the {lost[0]} is missing; expected `{lost[0]}: …`")
        if self.scale and not 0 < self.scale[2] <= self.scale[1] - self.scale[0]:
            raise ValueError(f"no scale in {list(self.scale)}; expected [lowest, highest, step]")

    @property
    def has_ratings(self) -> bool:
        """Whether a row says more than that somebody chose something."""
        return "rating" in self.ratings.column_names()


def keyed_table(**columns: str) -> TableLayout:
    """JSON lines, or a table whose header says the rest."""
    return TableLayout(columns={**columns})


def csv_table(separator: str = ",", **columns: str) -> TableLayout:
    return TableLayout(separator=separator, columns={**columns})


def plain_table(separator: str, fields: str, **columns: str) -> TableLayout:
    """Without a header and without quotes."""
    return TableLayout(separator=separator, fields=tuple(fields.split()), quotes="none", columns={**columns})


SEXES = {"M": "male", "F": "female"}
CODED_AGES = {
    **{"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44"},
    **{"45": "45-49", "50": "50-55", "56": "over 55"},
}
OCCUPATIONS = (
    "other", "academic or educator", "artist", "clerical worker", "college student", "customer service", "doctor",
    "executive or manager", "farmer", "homemaker", "school student", "lawyer", "programmer", "retired",
    "sales or marketing", "scientist", "self-employed", "technician or engineer", "craftsman", "unemployed", "writer",
)  # fmt: skip
STARS = (0.5, 5.0, 0.5)
WHOLE_STARS = (1.0, 5.0, 1.0)
FLAGS = " ".join(f"genre{n}" for n in range(19))

MOVIELENS_1M = Layout(
    ratings=plain_table("::", "user item rating time", user="user", item="item", rating="rating", time="time"),
    items=plain_table("::", "item title genres", item="item", title="title"),
    users=plain_table("::", "user sex age job zip", user="user", Sex="sex", Age="age", Occupation="job").overlay(
        TableLayout(
            values={"Sex": SEXES, "Age": CODED_AGES, "Occupation": {str(n): job for n, job in enumerate(OCCUPATIONS)}}
        )
    ),
    names={"ratings": ("ratings.dat",), "items": ("movies.dat",), "users": ("users.dat",)},
    encoding="latin-1",
    scale=STARS,
)
LAYOUTS = {
    "movielens": Layout(  # 20M, 25M, 32M, latest
        ratings=csv_table(user="userId", item="movieId", rating="rating", time="timestamp"),
        items=csv_table(item="movieId", title="title"),
        users=csv_table(user="userId", Sex="gender", Age="age", Occupation="occupation"),
        names={"ratings": ("ratings.csv",), "items": ("movies.csv",), "users": ("users.csv",)},
        scale=STARS,
    ),
    "movielens_1m": MOVIELENS_1M,  # ages and occupations are codes
    "movielens_10m": MOVIELENS_1M.model_copy(update={"encoding": "utf-8"}),
    "movielens_100k": Layout(  # ages are years
        ratings=plain_table("\t", "user item rating time", user="user", item="item", rating="rating", time="time"),
        items=plain_table("|", f"item title released video url {FLAGS}", item="item", title="title"),
        users=plain_table("|", "user age sex job zip", user="user", Sex="sex", Age="age", Occupation="job").overlay(
            TableLayout(values={"Sex": SEXES})
        ),
        names={"ratings": ("u.data",), "items": ("u.item",), "users": ("u.user",)},
        encoding="latin-1",
        scale=WHOLE_STARS,
    ),
    "amazon": Layout(  # reviews and metadata of 2014 and 2018
        ratings=keyed_table(user="reviewerID", item="asin", rating="overall", time="unixReviewTime"),
        items=keyed_table(item="asin", title="title"),
        scale=WHOLE_STARS,
    ),
    "amazon_2023": Layout(
        ratings=keyed_table(user="user_id", item="parent_asin", rating="rating", time="timestamp"),
        items=keyed_table(item="parent_asin", title="title"),
        scale=WHOLE_STARS,
        time="milliseconds",
    ),
    "goodreads": Layout(  # goodreads_interactions*.json.gz or goodreads_reviews*.json.gz, and goodreads_books*.json.gz
        ratings=keyed_table(user="user_id", item="book_id", rating="rating", time="date_added"),
        items=keyed_table(item="book_id", title="title"),
        scale=WHOLE_STARS,
        unrated=0,
        time="english",
    ),
    "goodbooks": Layout(  # goodbooks-10k; its rows are in order of time, says its page
        ratings=csv_table(user="user_id", item="book_id", rating="rating"),
        items=csv_table(item="book_id", title="title"),
        names={"ratings": ("ratings.csv",), "items": ("books.csv",)},
        scale=WHOLE_STARS,
        time="rows",
    ),
    "book_crossing": Layout(
        ratings=csv_table(";", user="User-ID", item="ISBN", rating="Book-Rating").overlay(
            TableLayout(quotes="backslash")
        ),
        items=csv_table(";", item="ISBN", title="Book-Title").overlay(TableLayout(quotes="backslash")),
        users=csv_table(";", user="User-ID", Age="Age", Home="Location").overlay(
            TableLayout(quotes="backslash", values={"Age": {"NULL": ""}})
        ),
        names={
            "ratings": ("BX-Book-Ratings.csv",),
            "items": ("BX-Books.csv", "BX_Books.csv"),
            "users": ("BX-Users.csv",),
        },
        encoding="latin-1",
        scale=(1, 10, 1),
        unrated=0,
        time="none",
        positive=6,
    ),
    "lastfm_360k": Layout(  # plays of an artist
        ratings=plain_table("\t", "user artist name plays", user="user", item="artist", title="name", rating="plays"),
        names={"ratings": ("usersha1-artmbid-artname-plays.tsv",)},
        time="none",
        positive=None,
    ),
    "lastfm_2k": Layout(  # HetRec 2011: user_artists.dat, artists.dat
        ratings=csv_table("\t", user="userID", item="artistID", rating="weight"),
        items=csv_table("\t", item="id", title="name").overlay(TableLayout(quotes="none")),
        names={"ratings": ("user_artists.dat",), "items": ("artists.dat",)},
        time="none",
        positive=None,
    ),
    "lastfm_1k": Layout(  # one row a listening
        ratings=plain_table(
            *("\t", "user time artist name track track_name"), user="user", item="artist", title="name", time="time"
        ),
        names={"ratings": ("userid-timestamp-artid-artname-traid-traname.tsv",)},
        time="iso",
        positive=1,
    ),
    "retailrocket": Layout(
        ratings=csv_table(user="visitorid", item="itemid", rating="event", time="timestamp"),
        names={"ratings": ("events.csv",)},
        untitled=True,
        events={"view": 1, "addtocart": 2, "transaction": 3},
        time="milliseconds",
        positive=2,
    ),
    "table": Layout(  # any other
        ratings=keyed_table(user="user", item="item", rating="rating", time="timestamp"),
        items=keyed_table(item="item", title="title"),
        users=keyed_table(user="user"),
        untitled=True,
        scale=STARS,
    ),
}
BY_SUFFIX = {".csv": "movielens", ".dat": "movielens_1m", ".data": "movielens_100k"}
Format = Literal[
    "auto", "movielens", "movielens_1m", "movielens_10m", "movielens_100k", "amazon", "amazon_2023", "goodreads",
    "goodbooks", "book_crossing", "lastfm_360k", "lastfm_2k", "lastfm_1k", "retailrocket", "table",
]  # fmt: skip

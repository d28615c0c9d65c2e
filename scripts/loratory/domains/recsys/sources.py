"""Options of the recommendation domain."""

from collections.abc import Callable
from functools import cache
from pathlib import PurePosixPath
from string import Formatter
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from loratory.domains.contract import DatasetOptions, Encoding, FilesOptions, Options, SimulationOptions, TaskOptions
from loratory.domains.recsys.layouts import BY_SUFFIX, LAYOUTS, Clock, Format, Layout, Scale, TableLayout

FAMILIES = {"causal": ("choice", "rank")}
AUDIO, FOLDED = False, False


class Files(FilesOptions):
    """Who chose or rated what, and the titles of the items: in the layout of a public data set, or in any other table.

    A location may be a zip archive, or one member of it written `archive.zip!folder/ratings.csv`. In an archive
    given alone the member is found by its public name. Without `items` the ratings' archive is searched for them.
    """

    LOCATIONS: ClassVar[tuple[str, ...]] = ("ratings", "items", "users")

    ratings: str = Field(description="who rated what, how and when")
    items: str | None = Field(
        None, description="titles of the items; may be left out if `ratings` is in a zip archive, or tells them"
    )
    users: str | None = Field(None, description="gender, age and occupation of the users, put in front of the prompt")
    format: Format = Field(
        "auto",
        description="data set whose layout they have; auto: MovieLens by suffix (.csv, .dat of 1M, .data of 100K);"
        " table: CSV with a header, parquet or JSON lines, with columns that `ratings_table` and `items_table` name",
    )
    encoding: Encoding | None = Field(None, description="text encoding of all the files; null: the format's own")
    ratings_table: TableLayout = Field(TableLayout(), description="what is other than in the format")
    items_table: TableLayout = Field(TableLayout(), description="what is other than in the format")
    users_table: TableLayout = Field(TableLayout(), description="what is other than in the format")
    scale: Scale | Literal["counts"] | None = Field(
        None, description="[lowest, highest, step] of ratings; counts: any number above 0; null: the format's own"
    )
    unrated: float | None = Field(None, description="number that means that nothing was rated; its rows are left out")
    events: dict[str, float] = Field({}, description="{kind of event: what it counts as} where ratings are words")
    time: Clock | None = Field(
        None,
        description="what times are written in: seconds or milliseconds since 1970, iso (2019-01-31T12:00:00Z) or"
        " english (Thu Jan 31 12:00:00 +0000 2019); rows: none, but rows are in order of time; none: no order either",
    )

    @model_validator(mode="after")
    def check_titles(self) -> Self:
        if self.format == "auto" and self.is_archived and not split_location(self.ratings)[1]:
            return self  # what its member is called is not known yet
        layout = self.layout
        told = self.items or self.is_archived or layout.untitled or "title" in layout.ratings.column_names()
        if not told:
            raise ValueError("`items` is missing; it may be left out only if `ratings` is in a zip archive")
        if self.users and len(layout.users.column_names()) < 2:
            raise ValueError(
                "`users` has no column to tell; expected `users_table: {columns: {user: …, Age: …}}`, or no `users`"
            )
        return self

    @property
    def is_archived(self) -> bool:
        return split_location(self.ratings)[0].endswith(".zip")

    @property
    def layout(self) -> Layout:
        """How the files are written, by format and by what the config says beside it.

        Raises:
            ValueError: these contradict each other, or nothing tells the format.
        """
        format = format_of(self.ratings) if self.format == "auto" else self.format
        known = LAYOUTS[format]
        changes = {
            table: getattr(known, table).overlay(getattr(self, f"{table}_table"))
            for table in ("ratings", "items", "users")
        }
        changes |= {
            name: getattr(self, name) for name in ("encoding", "unrated", "time") if getattr(self, name) is not None
        }
        changes |= {"events": self.events} if self.events else {}
        if self.scale is not None or self.events:
            scale = None if isinstance(self.scale, str) else self.scale
            alike = scale and known.scale and scale[1] == known.scale[1]
            changes |= {"scale": scale, "positive": known.positive if alike else None}
        if changes["ratings"].columns.get("rating") is None:
            changes |= {"scale": None, "positive": 1.0}
        layout = known.model_copy(update=changes)
        layout.check_columns()
        return layout

    def all_locations(self) -> list[str]:
        """Every file named, once; of a member, its archive."""
        return list(dict.fromkeys(split_location(location)[0] for location in super().all_locations()))

    def map_locations(self, move: Callable[[str], str]) -> Self:
        """A copy whose files went through `move`, an archive once; members keep their names."""
        move = cache(move)

        def move_file(location: str) -> str:
            path, member = split_location(location)
            return f"{move(path)}!{member}" if member else move(path)

        return super().map_locations(move_file)


def format_of(location: str) -> str:
    """The format of ratings by the suffix of their file.

    Raises:
        ValueError: it has another one.
    """
    path = PurePosixPath(split_location(location)[1] or location)
    suffix = PurePosixPath(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in BY_SUFFIX:
        raise ValueError(
            f"layout unknown by its suffix ({suffix}); expected {', '.join(BY_SUFFIX)}; fix: set `format:` to one of"
            f" {', '.join(LAYOUTS)}"
        )
    return BY_SUFFIX[suffix]


class Simulation(SimulationOptions):
    """A film-rating site in the layout of MovieLens CSV files."""

    users: int = Field(400, ge=20, le=100_000, description="users of each population")
    items: int = Field(300, ge=50, le=3_000, description="films in the catalogue")
    ratings: int = Field(40, ge=20, le=1_000, description="ratings of a user, on average; nobody has fewer than 20")
    taste: float = Field(1.0, ge=0, description="how much users differ in what they like and how generous they are")
    quality: float = Field(1.0, ge=0, description="how much films differ in what everybody thinks of them")
    fashion: float = Field(
        1.0, ge=0, description="how much all users of a population like one genre more than another"
    )


class Dataset(DatasetOptions):
    """A record is a rating to be predicted from the user's strictly earlier ones."""

    max_train: int | None = Field(
        None, ge=1, description="records of train that are kept, by the smallest id hashes; held-out splits stay whole"
    )
    protocol: Literal["time", "leave_last_out", "user_cold"] = Field(
        "time",
        description="what splits are: time: later parts of one time line; leave_last_out: each user's last times, the"
        " very last for test; user_cold: other users",
    )
    positive: float | None = Field(
        None, description="least rating that counts as liking; null: the format's own, 4 of 5 stars"
    )
    repeats: Literal["first", "last"] = Field(
        "first", description="which rating of an item counts that a user rated more than once"
    )
    negatives: int = Field(
        0,
        ge=0,
        description="items drawn for each record that its user never chose, as not liked: for choices without ratings",
    )
    k_core: int = Field(5, ge=1, description="ratings that every user and every item keeps having")
    k_core_of: Literal["all", "train"] = Field(
        "all", description="train: ratings are counted and left out in train alone, held-out ones all stay"
    )
    min_history: int = Field(5, ge=1, description="strictly earlier ratings of the user that a record needs")
    max_history: int = Field(10, ge=1, description="most recent ones of them that a record carries")

    @model_validator(mode="after")
    def check_options(self) -> Self:
        if self.min_history > self.max_history:
            raise ValueError(f"min_history {self.min_history} is above max_history {self.max_history}")
        if (
            self.protocol == "leave_last_out"
            and "split" in self.model_fields_set
            and self.split != DatasetOptions().split
        ):
            raise ValueError("`protocol: leave_last_out` has no fractions; expected no `split`")
        return self

    @property
    def split_limits(self) -> dict[str, int]:
        return {} if self.max_train is None else {"train": self.max_train}

    def source_conflict(self, source: Options) -> str | None:
        """Why ratings of such a source cannot become such a dataset; None if they can."""
        try:
            return layout_conflict(self, source.layout if isinstance(source, Files) else LAYOUTS["movielens"])
        except ValueError:
            return None  # an archive, whose members tell

    def least_liked(self, layout: Layout) -> float:
        """The least rating that counts as liking."""
        found = layout.positive if self.positive is None else self.positive
        assert found is not None  # `layout_conflict`
        return found


def layout_conflict(dataset: Dataset, layout: Layout) -> str | None:
    """Why ratings of a layout cannot become such a dataset; None if they can."""
    positive = layout.positive if dataset.positive is None else dataset.positive
    if layout.time == "none" and dataset.protocol != "user_cold":
        return (
            f"the ratings have no times, so no split by time is possible (protocol: {dataset.protocol}); expected"
            " `dataset.protocol: user_cold`, or `time: rows` where their rows are in order of time"
        )
    if positive is None:
        return "nothing says which ratings count as liking; expected `dataset.positive`, the least of them"
    if not dataset.negatives and not layout.has_ratings:
        return "there are choices alone, and nothing that was not liked; expected `dataset.negatives`, such as 1"
    if not dataset.negatives and layout.scale and not layout.scale[0] < positive <= layout.scale[1]:
        lowest, highest, _ = layout.scale
        return (
            f"`dataset.positive` {positive:g} tells no two ratings apart; expected above {lowest:g} and at most"
            f" {highest:g}, or `dataset.negatives` where all that was chosen was liked"
        )
    return None


def check_places(*allowed: str) -> AfterValidator:
    """Of a text with places such as `{title}`: only what can be filled in stands there."""

    def check(text: str) -> str:
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"not a template ({error}); a brace that is meant is written twice, as `{{{{`") from None
        for _, name, how, conversion in parts:
            if name is None:
                continue
            if name not in allowed:
                places = ", ".join(f"{{{place}}}" for place in allowed) or "none"
                raise ValueError(f"nothing to fill into `{{{name}}}`; expected {places}")
            if how or conversion:
                raise ValueError(f"`{{{name}}}` is filled in as it is; expected no `:` and no `!` behind its name")
        return text

    return AfterValidator(check)


class Task(TaskOptions):
    """The user's latest ratings as text, then a question to be answered by yes or no."""

    history: int = Field(5, ge=1, description="ratings shown, in order of time, at most the dataset's `max_history`")
    shows: Literal["latest", "similar"] = Field(
        "latest", description="the most recent of the ratings, or those of the items with the most similar titles"
    )
    averages: bool = Field(
        False, description="state how many ratings the user gave before and the item got before, and their mean stars"
    )
    searched: int | None = Field(
        None,
        ge=1,
        description="past ratings that the control `sim` attends to, those like the item; none: no such control",
    )
    max_title: int = Field(80, ge=8, description="characters of a title; longer ones are cut")
    max_prompt: int = Field(1500, ge=300, description="characters of a prompt; oldest ratings are left out to fit")
    heading: Annotated[str, check_places()] = Field(
        "The user rated these movies in the past, in this order:", description="line above the ratings"
    )
    event: Annotated[str, check_places("title", "rating")] = Field(
        "- {title} ({rating} stars)", description="line of a rating"
    )
    user_average: Annotated[str, check_places("mean", "count")] = Field(
        "The user gave {mean} stars on average ({count} ratings).", description="with `averages`"
    )
    item_average: Annotated[str, check_places("mean", "count")] = Field(
        "Other users gave this movie {mean} stars on average ({count} ratings).", description="with `averages`"
    )
    no_average: Annotated[str, check_places()] = Field(
        "No other user has rated it yet.", description="with `averages`, of an item that nobody has rated"
    )
    question_text: Annotated[str, check_places("title")] = Field(
        "Based on these ratings, deduce whether the user will like the movie ***{title}***.\n"
        "More stars mean that the user liked a movie more.\n"
        "Answer only yes or no:",
        description="what is asked about the item",
    )

    @model_validator(mode="after")
    def check_prompt(self) -> Self:
        for name, place in (("event", "title"), ("question_text", "title")):
            if f"{{{place}}}" not in getattr(self, name):
                raise ValueError(f"`{name}` says nothing of the item; expected {{{place}}} in it")
        for name in ("heading", "event", "user_average", "item_average", "no_average"):
            if "\n" in getattr(self, name):
                raise ValueError(f"`{name}` is more than one line; expected one")
        if self.question_text != self.question_text.rstrip():
            raise ValueError(
                "`question_text` ends in white space, and the answers begin with a blank; expected none at its end"
            )
        return self

    def dataset_conflict(self, dataset: DatasetOptions) -> str | None:
        """Records carry no more of the past than they were built with."""
        carried = getattr(dataset, "max_history", self.history)
        if self.history <= carried:
            return None
        return (
            f"`task.history` {self.history} is above the {carried} ratings that a record carries; expected at most"
            f" `dataset.max_history`, or `max_history: {self.history}`"
        )


def split_location(location: str) -> tuple[str, str]:
    """`(file, member)` of a location; no member unless it is written `archive.zip!member`."""
    archive, mark, member = location.partition(".zip!")
    return (f"{archive}.zip", member) if mark else (location, "")

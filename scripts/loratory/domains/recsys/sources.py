"""Options of the recommendation domain."""

from collections.abc import Callable
from functools import cache
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from loratory.domains.contract import DatasetOptions, Encoding, FilesOptions, SimulationOptions, TaskOptions

FAMILIES = {"causal": ("choice", "rank")}
AUDIO, FOLDED = False, False


class Files(FilesOptions):
    """Ratings and titles in a MovieLens layout.

    A location may be a zip archive, or one member of it written `archive.zip!folder/ratings.csv`. In an archive
    given alone the member is found by its MovieLens name. Without `items` the ratings' archive is searched for them.
    """

    LOCATIONS: ClassVar[tuple[str, ...]] = ("ratings", "items", "users")

    ratings: str = Field(description="who rated what, how and when")
    items: str | None = Field(
        None, description="titles of the items; may be left out if `ratings` is in a zip archive"
    )
    users: str | None = Field(None, description="gender, age and occupation of the users, put in front of the prompt")
    format: Literal["auto", "csv", "dat", "tab"] = Field(
        "auto", description="csv with a header, `::` (MovieLens-1M), or tab and `|` (MovieLens-100K); auto: by suffix"
    )
    encoding: Encoding = Field(
        "utf-8", description="text encoding of all the files; movies.dat and u.item are latin-1"
    )

    @model_validator(mode="after")
    def check_titles(self) -> Self:
        if self.items is None and not split_location(self.ratings)[0].endswith(".zip"):
            raise ValueError("`items` is missing; it may be left out only if `ratings` is in a zip archive")
        return self

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


class Simulation(SimulationOptions):
    """A film-rating site in the layout of MovieLens CSV files."""

    users: int = Field(400, ge=20, le=100_000, description="users of each population")
    items: int = Field(300, ge=50, le=3_000, description="films in the catalogue")
    ratings: int = Field(40, ge=20, le=1_000, description="ratings of a user, on average; nobody has fewer than 20")
    taste: float = Field(1.0, ge=0, description="how much users differ in what they like and how generous they are")
    quality: float = Field(1.0, ge=0, description="how much films differ in what everybody thinks of them")


class Dataset(DatasetOptions):
    """A record is a rating to be predicted from the user's strictly earlier ones; splits cut one global time line."""

    positive: float = Field(4.0, ge=0.5, le=5, description="fewest stars that count as liking")
    k_core: int = Field(5, ge=1, description="ratings that every user and every item keeps having")
    min_history: int = Field(5, ge=1, description="strictly earlier ratings of the user that a record needs")
    max_history: int = Field(10, ge=1, description="most recent ones of them that a record carries")

    @model_validator(mode="after")
    def check_history(self) -> Self:
        if self.min_history > self.max_history:
            raise ValueError(f"min_history {self.min_history} is above max_history {self.max_history}")
        return self


class Task(TaskOptions):
    """The user's latest ratings as text, then a question to be answered by yes or no."""

    history: int = Field(5, ge=1, description="ratings shown, in order of time, at most the dataset's `max_history`")
    shows: Literal["latest", "similar"] = Field(
        "latest", description="the most recent of the ratings, or those of the items with the most similar titles"
    )
    averages: bool = Field(
        False, description="state how many ratings the user gave before and the item got before, and their mean stars"
    )
    max_title: int = Field(80, ge=8, description="characters of a title; longer ones are cut")
    max_prompt: int = Field(1500, ge=300, description="characters of a prompt; oldest ratings are left out to fit")


def split_location(location: str) -> tuple[str, str]:
    """`(file, member)` of a location; no member unless it is written `archive.zip!member`."""
    archive, mark, member = location.partition(".zip!")
    return (f"{archive}.zip", member) if mark else (location, "")

"""A film-rating site in MovieLens' CSV layout, where a user's earlier ratings predict the next.

Titles are made of words that belong to genres, and every user has a taste for each genre, so that earlier stars and
titles tell how a new title will be liked. Popularity is skewed, films differ in quality, users in generosity, and
ratings come in sessions on one time line. The two populations have other users, other films of the same style, another
mix of genres, other fashions and another generosity: reading stars carries over, the level has to be learnt anew.
With `taste: 0` all users of a population like alike, and what a user rated says nothing of what he will; with
`quality: 0` nothing but the genres tells one film from another, and with `fashion: 0` they say the same of all users:
without all three a rating is noise.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loratory.data.files import atomic_write
from loratory.domains.recsys.sources import Simulation

WORDS = {  # genre: words that go first, words that go last
    "Comedy": ("Awkward Clumsy Crazy Goofy Silly Wacky", "Cousin Neighbor Prank Roommate Vacation Wedding"),
    "Crime": ("Corrupt Crooked Guilty Midnight Stolen Wanted", "Alibi Gangster Heist Mob Robbery Witness"),
    "Fantasy": ("Ancient Elven Enchanted Golden Magic Sacred", "Castle Dragon Kingdom Sword Unicorn Wizard"),
    "Horror": ("Bloody Cursed Evil Haunted Rotten Screaming", "Asylum Cemetery Demon Graveyard Vampire Zombie"),
    "Romance": ("Beloved Gentle Lovely Passionate Secret Tender", "Bride Darling Kiss Letter Sweetheart Valentine"),
    "Sci-Fi": ("Atomic Cosmic Galactic Lunar Robotic Stellar", "Android Asteroid Colony Machine Planet Starship"),
    "War": ("Armored Fallen Heroic Marching Occupied Wounded", "Battalion Bunker General Platoon Soldier Trench"),
    "Western": ("Dusty Lawless Lonesome Outlaw Prairie Wild", "Canyon Cowboy Ranch Rodeo Saloon Sheriff"),
}
GENRES = tuple(WORDS)
SECOND_GENRE = 0.3  # share of films of two genres; they take their last word from the second
YEARS = (1950, 1996)  # films are older than the site
OPENED, CLOSED = 820_454_400, 1_136_073_600  # the site's time line: 1996 to 2006, in seconds
STAY = 2 * 365 * 86_400  # longest time between a user's sessions
FEWEST = 20  # ratings of a user, as in MovieLens
MEAN_STARS = 3.4
SKEW = 0.8  # exponent of popularity by rank
TASTE, QUALITY, GENEROSITY, NOISE = 0.9, 0.3, 0.3, 0.5  # standard deviations in stars


@dataclass(frozen=True)
class RaterPopulation:
    """`mix`: odds that a film is of each genre; `fashion`: stars by which its users like each genre more."""

    first_user: int
    generosity: float
    mix: tuple[float, ...]
    fashion: tuple[float, ...]


POPULATIONS = {
    "general": RaterPopulation(1_000_001, 0.3, (3, 2, 1, 1, 3, 1, 1, 1), (0.3, 0.2, 0, -0.4, 0.3, 0, -0.2, -0.2)),
    "domain": RaterPopulation(1, -0.1, (1, 1, 2, 3, 1, 3, 1, 1), (-1.8, -0.6, 0.9, 1.8, -1.8, 1.5, 0.3, -0.9)),
}


def simulate(simulation: Simulation, population: str, seed: int, out: Path | str) -> dict[str, str]:
    """Writes `ratings.csv` and `movies.csv` into the folder `out`; the same arguments give the same bytes."""
    people = POPULATIONS[population]
    rng = np.random.default_rng([seed, list(POPULATIONS).index(population)])
    titles, genres = film_catalogue(rng, simulation.items, people)
    movies = [
        (n, title, "|".join(GENRES[g] for g in kinds)) for n, (title, kinds) in enumerate(zip(titles, genres), 1)
    ]
    membership = np.array([[(g in kinds) / len(kinds) for g in range(len(GENRES))] for kinds in genres])
    appeal = -SKEW * np.log(1 + rng.permutation(simulation.items))
    quality = simulation.quality * rng.normal(0, QUALITY, simulation.items)
    ratings = [
        row
        for user in range(people.first_user, people.first_user + simulation.users)
        for row in user_ratings(rng, user, simulation, people, membership, appeal, quality)
    ]
    write_csv(Path(out, "movies.csv"), ("movieId", "title", "genres"), movies)
    write_csv(Path(out, "ratings.csv"), ("userId", "movieId", "rating", "timestamp"), ratings)
    return {"ratings": "ratings.csv", "items": "movies.csv"}


def film_catalogue(
    rng: np.random.Generator, items: int, people: RaterPopulation
) -> tuple[list[str], list[tuple[int, ...]]]:
    """Distinct titles such as `Midnight Robbery, The (1954)`, and the one or two genres of each."""
    odds = np.array(people.mix) / sum(people.mix)
    films: dict[str, tuple[int, ...]] = {}
    while len(films) < items:
        kinds = rng.choice(len(GENRES), 1 + (rng.random() < SECOND_GENRE), replace=False, p=odds).tolist()
        words = [rng.choice(WORDS[GENRES[kinds[place]]][place].split()) for place in (0, -1)]
        article = ", The" if rng.random() < 0.2 else ""
        films.setdefault(f"{' '.join(words)}{article} ({rng.integers(*YEARS)})", tuple(sorted(kinds)))
    return list(films), list(films.values())


def user_ratings(
    rng: np.random.Generator,
    user: int,
    simulation: Simulation,
    people: RaterPopulation,
    membership: np.ndarray,
    appeal: np.ndarray,
    quality: np.ndarray,
) -> list[tuple]:
    """Rows of `ratings.csv` in the films' order.

    Args:
        membership: (items, genres) share of each genre in each film.
        appeal: (items,) log odds of being watched.
        quality: (items,) stars by which everyone likes a film more.
    """
    n = min(FEWEST + rng.poisson(rng.exponential(simulation.ratings - FEWEST)), simulation.items)
    own = simulation.taste * rng.normal(0, TASTE, len(GENRES))
    liking = membership @ (own + simulation.fashion * np.array(people.fashion))
    # The n largest of log odds with Gumbel noise are a draw without replacement by those odds.
    watched = np.argsort(-(appeal + 0.5 * liking + rng.gumbel(size=len(appeal))))[:n]
    generosity = people.generosity + simulation.taste * rng.normal(0, GENEROSITY)
    exact = MEAN_STARS + generosity + quality[watched] + liking[watched] + rng.normal(0, NOISE, n)
    stars = np.clip(np.round(2 * exact) / 2, 0.5, 5)
    times = rng.permutation(session_times(rng, n))
    rows = zip((watched + 1).tolist(), stars.tolist(), times.tolist())
    return [(user, film, f"{star:.1f}", time) for film, star, time in sorted(rows)]


def session_times(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n,) seconds: a few sessions, in which ratings follow each other within seconds, some in the same one."""
    first = rng.integers(OPENED, CLOSED - STAY)
    starts = np.r_[first, first + rng.integers(0, STAY, rng.poisson(3))]
    session = np.sort(rng.integers(0, len(starts), n))
    return starts[session] + np.cumsum(rng.integers(0, 15, n))


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    with atomic_write(path) as aside, open(aside, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])

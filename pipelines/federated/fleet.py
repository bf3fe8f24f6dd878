"""A fleet of phones of which none is stored: what a device is and when it rests follows from its number alone.

Comes in: device numbers and (virtual) moments. Comes out: traits, and whether each device could train at its moment,
and until when. A fleet of 10^9 costs what one of 1,000 does: only the devices asked about are drawn, by hashes of
their numbers (`models/draws.py`). When they rest is in `rest.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from models.draws import Words, draw_seed, seeds_of
from models.errors import BadInput
from models.population import Ids
from pipelines.federated.cohort import Eligibility
from pipelines.federated.packed_draws import BITS, NORMAL, VALUES, classes, field, happens
from pipelines.federated.rest import HOUR_S, Availability, Flags, Floats, Rest, availability

LARGEST = 1 << 33
"""Devices in the largest fleet: a contribution is kept as one 64-bit number (`clock.py`)."""
QUARTILES = np.array([-0.6744897501960817, 0.0, 0.6744897501960817])
"""Where the standard normal distribution is cut into four."""
ANYBODY = Eligibility()


@dataclass(frozen=True)
class Region:
    """Devices of one keyboard language in one time zone. share: of the fleet; a fleet's shares sum to 1."""

    locale: str
    utc_offset_h: float
    share: float


@dataclass(frozen=True)
class Traits:
    """What devices are, as parallel arrays [devices].

    region: index into `Fleet.regions`; memory: index into `Fleet.memory`; speed: examples/s of the reference model;
    down_rate, up_rate: bytes/s; hazard: interruptions/s while training (the user takes the phone, the system needs
    the memory); speed_quartile, network_quartile: 0 is the slowest quarter of the fleet.
    """

    region: Ids
    memory: Ids
    home_wifi: Flags
    speed: Floats
    down_rate: Floats
    up_rate: Floats
    hazard: Floats
    speed_quartile: Ids
    network_quartile: Ids


US_KEYBOARDS = (
    Region("en-US", -5, 0.30), Region("en-US", -6, 0.18), Region("en-US", -7, 0.05), Region("en-US", -8, 0.13),
    Region("en-CA", -5, 0.05), Region("en-CA", -8, 0.03), Region("fr-CA", -5, 0.03), Region("es-US", -6, 0.10),
    Region("en-GB", 0, 0.07), Region("de-DE", 1, 0.06),
)  # fmt: skip
"""Mostly North America, by its populations in time zones (without summer time), and some who must not be asked."""

NIGHT = Rest(21.5, 2.0, 1.0, 8.5, 1.2, 0.7, charging=0.85, unmetered=0.97, idle_after_h=0.5, at_home=True)
DAY = Rest(12.0, 2.0, 2.0, 3.5, 1.0, 1.0, charging=0.7, unmetered=0.65, idle_after_h=0.3, at_home=False)


@dataclass(frozen=True)
class Fleet:
    """The population of devices 0 to size-1, by its distributions. The defaults are plausible, not measured.

    memory: (GB, share) from small to large; home_wifi: share with an unmetered network at home; speed_median in
    examples/s of the reference model, down_median, up_median in bytes/s, hazard_median in interruptions per hour of
    session: lognormal, `*_spread` is the standard deviation of the logarithm; speed_memory: correlation of speed and
    memory (old phones are slow and small); transfer_failure: probability that a download or an upload breaks;
    latency_s: what a transfer takes beyond its bytes.

    Night and day are such that 7 times as many devices are ready in the best hour as in the worst (Bonawitz et al.,
    2019, section 9, saw a factor of 4), and the hazard such that 2 to 10% drop out, the more the longer a round takes
    (there: 6 to 10%).
    """

    size: int
    seed: int = 0
    regions: tuple[Region, ...] = US_KEYBOARDS
    memory: tuple[tuple[float, float], ...] = (
        (1.0, 0.08), (2.0, 0.17), (3.0, 0.20), (4.0, 0.25), (6.0, 0.15), (8.0, 0.15),
    )  # fmt: skip
    home_wifi: float = 0.8
    night: Rest = NIGHT
    day: Rest = DAY
    speed_median: float = 50.0
    speed_spread: float = 0.6
    speed_memory: float = 0.6
    down_median: float = 2e6
    up_median: float = 6e5
    network_spread: float = 0.8
    hazard_median: float = 1.2
    hazard_spread: float = 0.5
    transfer_failure: float = 0.01
    latency_s: float = 0.3

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST:
            raise BadInput(f"a fleet has 1 to {LARGEST:,} devices, not {self.size:,}; set its size")
        if self.latency_s <= 0:
            raise BadInput(f"a transfer cannot take {self.latency_s:g} s; give the fleet a latency_s above 0")
        for name, shares in (
            ("regions", [region.share for region in self.regions]),
            ("memory", [share for _, share in self.memory]),
        ):
            if min(shares, default=0.0) < 0 or abs(sum(shares) - 1) > 1e-6:
                raise BadInput(f"the shares of the fleet's {name} sum to {sum(shares):g}; they must sum to 1")

    # -- what a device is ---------------------------------------------------------------------------------------

    def words(self, ids: Ids) -> Words:
        """The word [devices] from which a device's region, memory, home network and habits are read."""
        return seeds_of(self._salts[0], ids)

    def admits(self, words: Words, eligibility: Eligibility) -> Flags:
        """Whether devices have the locale and the memory: never changes for a device. words: of `words(ids)`."""
        region_ok, memory_ok = self._able(eligibility)
        return np.asarray(region_ok.take(field(words, 0)) & memory_ok.take(field(words, 1)))

    def traits(self, ids: Ids) -> Traits:
        words = self.words(ids)
        more = seeds_of(self._salts[1], ids)
        speed = self._speed_z(words, more)
        network = NORMAL.take(field(more, 1)).astype(np.float64)
        hazard = NORMAL.take(field(more, 2)).astype(np.float64)
        return Traits(
            region=self._regions.take(field(words, 0)),
            memory=self._memory.take(field(words, 1)),
            home_wifi=happens(words, 4, self.home_wifi),
            speed=self.speed_median * np.exp(self.speed_spread * speed),
            down_rate=self.down_median * np.exp(self.network_spread * network),
            up_rate=self.up_median * np.exp(self.network_spread * network),
            hazard=self.hazard_median / HOUR_S * np.exp(self.hazard_spread * hazard),
            speed_quartile=np.searchsorted(QUARTILES, speed).astype(np.int64),
            network_quartile=field(more, 1) >> (BITS - 2),
        )

    # -- when a device is free ----------------------------------------------------------------------------------

    def available(self, ids: Ids, at_s: Floats | float, needs: Eligibility = ANYBODY) -> Availability:
        """Which conditions hold at device ids[i] at the virtual moment at_s[i] (UTC seconds)."""
        return self.conditions(self.words(ids), np.broadcast_to(np.asarray(at_s, dtype=np.float64), ids.shape), needs)

    def conditions(self, words: Words, at_s: Floats, needs: Eligibility) -> Availability:
        """The same from `words(ids)`, for a caller who looked at `admits` first."""
        offset_s = self._offset_s.take(field(words, 0))
        return availability(words, at_s, offset_s, happens(words, 4, self.home_wifi), self.night, self.day, needs)

    # -- how many of which kind ---------------------------------------------------------------------------------

    def groups(self, ids: Ids) -> dict[str, Ids]:
        """How many of the devices are of which kind: trait → counts, in the order of `shares()[trait]`."""
        traits = self.traits(ids)
        kinds = self._kinds
        of = {
            "locale": kinds["locale"][1].take(traits.region),
            "memory": traits.memory,
            "time zone": kinds["time zone"][1].take(traits.region),
            "home network": traits.home_wifi.astype(np.int64),
            "speed": traits.speed_quartile,
            "network": traits.network_quartile,
        }
        return {name: np.bincount(of[name], minlength=len(labels)) for name, (labels, _) in kinds.items()}

    def shares(self) -> dict[str, dict[str, float]]:
        """The same of the whole fleet, as shares: trait → kind → share. Expected ones: nobody is counted."""
        regions = np.bincount(self._regions, minlength=len(self.regions)) / VALUES
        memory = np.bincount(self._memory, minlength=len(self.memory)) / VALUES
        wifi = round(self.home_wifi * VALUES) / VALUES
        quarters = np.full(4, 0.25)
        whole = {"memory": memory, "home network": np.array([1 - wifi, wifi]), "speed": quarters, "network": quarters}
        for name in ("locale", "time zone"):
            whole[name] = np.bincount(self._kinds[name][1], weights=regions)
        return {name: dict(zip(labels, whole[name].tolist(), strict=True)) for name, (labels, _) in self._kinds.items()}

    @cached_property
    def _kinds(self) -> dict[str, tuple[list[str], Ids]]:
        """Trait → (names of its kinds, for locale and time zone the kind of every region)."""
        locales = list(dict.fromkeys(region.locale for region in self.regions))
        zones = sorted({region.utc_offset_h for region in self.regions})
        quarters = ["slowest", "slow", "fast", "fastest"]
        none = np.zeros(0, dtype=np.int64)
        return {
            "locale": (locales, np.array([locales.index(region.locale) for region in self.regions])),
            "memory": ([f"{gb:g} GB" for gb, _ in self.memory], none),
            "time zone": (
                [f"UTC{offset:+g}" for offset in zones],
                np.array([zones.index(region.utc_offset_h) for region in self.regions]),
            ),
            "home network": (["metered", "unmetered"], none),
            "speed": (quarters, none),
            "network": (quarters, none),
        }

    # -- tables of 4096 entries, one for each value of a 12-bit draw ----------------------------------------------

    @cached_property
    def _salts(self) -> tuple[int, int]:
        return (draw_seed("device", self.seed), draw_seed("device, more", self.seed))

    @cached_property
    def _regions(self) -> Ids:
        return classes([region.share for region in self.regions])

    @cached_property
    def _memory(self) -> Ids:
        return classes([share for _, share in self.memory])

    @cached_property
    def _offset_s(self) -> Floats:
        return np.array([region.utc_offset_h for region in self.regions])[self._regions] * HOUR_S

    def _able(self, eligibility: Eligibility) -> tuple[Flags, Flags]:
        known = {region.locale for region in self.regions}
        if strangers := sorted(set(eligibility.locales) - known):
            raise BadInput(f"no device of the fleet has the locale {strangers[0]}; it has {', '.join(sorted(known))}")
        wanted = set(eligibility.locales) or known
        regions = np.array([region.locale in wanted for region in self.regions])
        memory = np.array([gb >= eligibility.minimum_memory_gb for gb, _ in self.memory])
        return regions[self._regions], memory[self._memory]

    def _speed_z(self, words: Words, more: Words) -> Floats:
        share = self.speed_memory
        own, by_memory = NORMAL.take(field(more, 0)), NORMAL.take(field(words, 1))
        return np.asarray(share * by_memory.astype(np.float64) + (1 - share**2) ** 0.5 * own)

"""Any URL as a place to read and write: retries, exact lengths, atomic publishing. Knows nothing of what is stored."""

from stoker.storage.cache import BlockCache
from stoker.storage.in_flight import InFlight
from stoker.storage.location import Conflict, Location, locate
from stoker.storage.reads import ReadCounters, Reads

__all__ = ["BlockCache", "Conflict", "InFlight", "Location", "ReadCounters", "Reads", "locate"]

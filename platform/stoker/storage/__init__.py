"""Read and write objects at any URL, with retries, exact lengths and atomic publication."""

from stoker.storage.cache import BlockCache
from stoker.storage.in_flight import InFlight
from stoker.storage.location import Conflict, Location, locate
from stoker.storage.reads import ReadCounters, Reads

__all__ = ["BlockCache", "Conflict", "InFlight", "Location", "ReadCounters", "Reads", "locate"]

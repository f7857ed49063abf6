"""Any URL as a place to read and write: retries, exact lengths, atomic publishing. Knows nothing of what is stored."""

from stoker.storage.location import Conflict, Location, locate

__all__ = ["Conflict", "Location", "locate"]

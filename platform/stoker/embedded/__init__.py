"""An object store and a Ray cluster on this machine: started, reused and stopped without a trace, all on loopback.

A start: read ``cluster/local.yaml`` (``settings``), take the state folder's lock (``state``), choose free
ports (``ports``), start SeaweedFS (``store``) and the head of a Ray cluster (``cluster``) as children that outlive us
(``processes``), and wait until each answers. ``instance`` puts them together; ``stoker up``,
``down``, ``status`` and ``environment`` are its command line.
"""

from stoker.embedded.cluster import RayCluster
from stoker.embedded.instance import Instance, Owner
from stoker.embedded.settings import Settings
from stoker.embedded.state import StateFolder
from stoker.embedded.store import ObjectStore

__all__ = ["Instance", "ObjectStore", "Owner", "RayCluster", "Settings", "StateFolder"]

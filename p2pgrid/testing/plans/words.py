"""The words a scenario file may use where not every text has a meaning."""

from __future__ import annotations

ENGINES = ("whole", "core")
SIGNATURES = ("oracle", "real")
NATS = ("open", "cone", "symmetric")
BEHAVIOURS = ("honest", "wrong", "colluding", "digest", "lazy")
CHURNS = ("none", "weibull", "ipfs", "laptop")
ACCEPTED_WRONG = ("none", "formula")
FAULT_MEANINGS = {
    "crash": "the process is killed for good, and the disk is gone too",
    "restart": "the process is killed, and started again on the disk it had after `for_s`",
    "power": "the machine loses its power, and what was not synced is lost or torn; it comes back after `for_s`",
    "leave": "the node leaves in good order and does not return",
    "freeze": "the machine stands still for `for_s`, then goes on as if nothing had been",
    "slow": "the processor is `strength` times slower for `for_s`",
    "flash-crowd": "`nodes` new machines of the kind `of` join within `strength` seconds",
    "partition": "`nodes`, or `share`, and all the others do not hear of one another for `for_s`",
    "one-way": "what `nodes`, or `share`, say to the others is lost for `for_s`; they themselves hear all",
    "clog": "all that the machine sends and receives takes `strength` seconds more for `for_s`",
    "lossy": "everybody's datagrams and segments are lost with the chance `strength` for `for_s`",
    "clock-skew": "the wall clock jumps by `strength` seconds, which may be negative, and back after `for_s`",
    "rot": "`strength` bits of files in the store flip",
    "full-disk": "the disk has only `strength` bytes of room left for `for_s`",
    "flood": "`nodes` hostile members send requests and garbage, `strength` a second for `for_s`",
    "forge": "`nodes` hostile members send forged statements, `strength` a second for `for_s`",
    "replay": "`nodes` hostile members send again what they saw before, `strength` a second for `for_s`",
}
FAULT_KINDS = tuple(FAULT_MEANINGS)

"""Running units: warm worker processes, the pool that owns them, and the confinement around them.

``tasks`` says what goes in and what comes out, ``pool`` is the only thing services talk to, ``worker`` is the code
inside the process. A runtime decides nothing about trust: whoever calls it has checked grants and policy.
"""

"""The public asyncio API: talk to a node you own, submit jobs, read results, put and get files."""

from p2pgrid.client.channel import Channel
from p2pgrid.client.jobs import JobBuilder, Plan
from p2pgrid.client.running import Outcome, collect

__all__ = ["Channel", "JobBuilder", "Outcome", "Plan", "collect"]

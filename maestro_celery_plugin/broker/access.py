"""The users of a private broker, and what each may do: the access control list of Valkey and Redis (ACL).

Every process of a study knows the password of the session's user. That user can send and receive the messages of the
session and events, and nothing else: it cannot change the server, read its configuration, or run scripts.
"""

from __future__ import annotations

__all__ = ["ADMIN", "USER", "acl_lines"]

USER = "maestro"
ADMIN = "supervisor"

# What kombu and the monitors of Celery send, as seen with MONITOR. redis-py also sends CLIENT SETINFO, and continues
# when it is refused; Redis 7.0 does not know it, and does not start with it in this list.
_COMMANDS = (
    *("auth", "hello", "ping", "select", "multi", "exec", "discard"),
    # Task queues.
    *("lpush", "rpush", "rpop", "brpop", "llen", "del", "exists"),
    # Events of the workers: exchanges and channels. kombu runs a script for a queue that expires; a monitor therefore
    # needs Celery's setting `event_queue_expires` = None.
    *("publish", "psubscribe", "punsubscribe", "sadd", "srem", "smembers"),
)
# What workers of release 0.1 also send, with kombu's emulation of acknowledgements and Celery's remote control.
_COMMANDS_0_1 = ("zadd", "zrem", "zrange", "zrevrangebyscore", "hset", "hget", "hdel", "set", "watch", "unwatch")
_KEYS_0_1 = ("~unacked*", "~_kombu.binding.*", "&/0.celery*")


def acl_lines(session_id: str, user: str | None, password: str, admin_password: str) -> list[str]:
    """Return the lines of the server's configuration that define its users.

    Args:
        session_id: The beginning of the names of the session's task queues.
        user: The user of the session; None for the default user, which sessions of release 0.1 have in their URL.
        password: Password of the session's user.
        admin_password: Password of the supervisor.
    """
    rules = " ".join(
        (
            "reset on",
            f">{password}",
            f"~{session_id}.*",
            "~celeryev.*",
            "~_kombu.binding.celeryev*",
            "~_kombu.binding_permanent.celeryev*",
            "&/0.celeryev/*",
            *(f"+{command}" for command in _COMMANDS),
        )
    )
    if user is None:
        rules = " ".join((rules, *_KEYS_0_1, *(f"+{command}" for command in _COMMANDS_0_1)))
    lines = [f"user {ADMIN} reset on >{admin_password} ~* &* +@all", f"user {user or 'default'} {rules}"]
    return lines if user is None else ["user default reset", *lines]

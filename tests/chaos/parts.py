"""The parts of a running study, and what can be done to them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import psutil
import redis
from amqp.exceptions import AMQPError
from intruder import admin_of
from kombu import Connection
from kombu.exceptions import KombuError
from proxy import Proxy
from support import Study

from maestro_celery_plugin.study.session import Session

__all__ = ["Parts"]

PAUSES_S = (1, 2, 4, 8)


class Parts:
    """The processes and the broker of a study.

    Args:
        study: The study.
        broker_url: URL of a Redis or RabbitMQ server; None for the private broker.
        proxy: The proxy between the study and this server; None for the private broker.
        choose: Random choices.
    """

    def __init__(self, study: Study, broker_url: str | None, proxy: Proxy | None, choose: random.Random) -> None:
        self.study, self._url, self._proxy, self._choose = study, broker_url, proxy, choose
        self.complaints: list[str] = []

    # --- processes ---

    def processes(self, *parts: str) -> list[psutil.Process]:
        """Return the processes of these parts; a process below the study's directory that is no other part is a sample."""
        return [process for process in psutil.process_iter() if self._part_of(process) in parts]

    def _part_of(self, process: psutil.Process) -> str | None:
        """Return the part of the study that a process belongs to; None for a process of anybody else."""
        root = str(self.study.path)
        try:
            line = " ".join(process.cmdline())
            is_own = root in line or process.cwd().startswith(root)
            if not is_own or process.pid == os.getpid() or "bin/maestro" in line or process.status() == "zombie":
                return None
            if "maestro_celery_plugin.worker" in line:
                above = process.parent()
                is_child = above is not None and "maestro_celery_plugin.worker" in " ".join(above.cmdline())
                return "worker" if is_child else "supervisor"
        except psutil.Error:
            return None
        names = {"bin/conductor": "conductor", "maestro_celery_plugin.host": "host", "-server": "server"}
        return next((part for text, part in names.items() if text in line), "sample")

    def send(self, number: signal.Signals, *parts: str) -> None:
        for process in self.processes(*parts):
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def kill(self, *parts: str) -> None:
        self.send(signal.SIGKILL, *parts)

    def pause(self, *parts: str) -> None:
        self.send(signal.SIGSTOP, *parts)
        time.sleep(self._choose.choice(PAUSES_S))
        self.send(signal.SIGCONT, *parts)

    def kill_one_sample(self) -> None:
        for process in self.processes("sample"):
            with contextlib.suppress(psutil.Error):
                if process.name() == "bash":
                    process.kill()
                    return

    # --- broker ---

    @property
    def _session(self) -> Session:
        return Session(self.study.path / "merlin_info" / "session")

    def _admin(self) -> redis.Redis:
        """Return a client with all rights, which the users of a private broker do not have."""
        if self._url is not None:
            return redis.Redis.from_url(self._url, socket_timeout=3)
        return admin_of(self._session, socket_timeout=3)

    def flush_broker(self) -> None:
        """Delete all messages."""
        with contextlib.suppress(OSError, redis.RedisError):
            if self._is_rabbitmq:
                self._on_queue("queue_purge")
            else:
                self._admin().flushall()

    def drop_clients(self) -> None:
        """Let the broker close all connections; on RabbitMQ, delete the queue under its consumers."""
        with contextlib.suppress(OSError, redis.RedisError):
            if self._is_rabbitmq:
                self._on_queue("queue_delete")
            else:
                self._admin().execute_command("CLIENT", "KILL", "SKIPME", "yes")

    @property
    def _is_rabbitmq(self) -> bool:
        return (self._url or "").startswith("amqp")

    def _on_queue(self, operation: str) -> None:
        queue = self._session.queue("merlin")
        # The broker may be down; amqp and kombu raise their own errors.
        errors = (OSError, AMQPError, KombuError)
        with contextlib.suppress(*errors), Connection(self._url, connect_timeout=3) as connection:
            getattr(connection.default_channel, operation)(queue)

    def take_broker_away(self) -> None:
        """End all connections to the broker, which cannot be reached for some seconds, and keeps its messages."""
        if self._proxy is not None:
            self._proxy.go_away(self._choose.choice(PAUSES_S))

    def freeze_and_drop(self) -> None:
        """Stop the workers while the broker closes their connections."""
        self.send(signal.SIGSTOP, "worker")
        time.sleep(1.5)
        self.drop_clients()
        time.sleep(0.2)
        self.send(signal.SIGCONT, "worker")

    # --- commands ---

    def resume(self) -> None:
        """Resume the study; try again for some seconds, because the last conductor may not have ended yet."""
        for _ in range(30):
            answer = self.study.command("maestro-celery", "resume", "-s", "1", str(self.study.path))
            if "Traceback" in answer.stderr:
                self.complaints.append(answer.stderr)
            if answer.returncode == 0 or self.processes("conductor"):
                return
            time.sleep(0.5)
        self.complaints.append(f"resume is refused: {answer.stderr}")

    def cancel_and_resume(self) -> None:
        answer = self.study.command("maestro", "cancel", "-y", str(self.study.path))
        if answer.returncode or "Traceback" in answer.stderr:
            self.complaints.append(f"cancel: {answer.stdout} {answer.stderr}")
        self.resume()

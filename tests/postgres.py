"""A PostgreSQL of the system's, started for tests, with a database for each that asks: what several nodes share."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from service.launch import free_port

START_S = 30
PASSWORD = "open-sesame"  # of the server's only user, which asks for it
INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # where Debian has them


class Postgres:
    """A server on 127.0.0.1 that wants a password. For `with`; skips the test where PostgreSQL is not installed."""

    def __init__(self) -> None:
        found = shutil.which("initdb", path=os.pathsep.join([os.environ["PATH"], *map(str, INSTALLED)]))
        if found is None:
            pytest.skip("no PostgreSQL: initdb is not installed (apt-get install postgresql)")
        self._programs = Path(found).resolve().parent
        self.port = free_port()
        self._numbers = itertools.count()

    def __enter__(self) -> Postgres:
        self._folder = Path(tempfile.mkdtemp(prefix="heed-postgres-"))
        (self._folder / "password").write_text(PASSWORD)
        self._user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name  # it does not run as root
        if os.getuid() == 0:
            for path in (self._folder, self._folder / "password"):
                shutil.chown(path, self._user)
        data = str(self._folder / "data")
        options = [
            "-D",
            data,
            "-U",
            "heed",
            "--auth=scram-sha-256",
            f"--pwfile={self._folder / 'password'}",
            "--no-sync",
        ]
        subprocess.run([self._programs / "initdb", *options], check=True, capture_output=True, user=self._user)
        listen = ["-p", str(self.port), "-h", "127.0.0.1", "-k", "", "-c", "fsync=off"]
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", data, *listen], stderr=subprocess.DEVNULL, user=self._user
        )
        self._wait()
        return self

    def _wait(self) -> None:
        end = time.monotonic() + START_S
        while True:
            try:
                return self._execute("SELECT 1")
            except psycopg.OperationalError:
                assert time.monotonic() < end
                time.sleep(0.05)

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGQUIT)  # nothing of it is kept
        self._process.wait(START_S)
        shutil.rmtree(self._folder)

    def database(self) -> str:
        """The URL, without the password, of a new database."""
        name = f"feedback{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name}")
        return f"postgresql://heed@127.0.0.1:{self.port}/{name}"

    def _execute(self, command: str) -> None:
        url = f"postgresql://heed:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(command.encode())

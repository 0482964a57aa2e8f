"""Uploads of a model to the Hub in the background, while its training goes on."""

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..utils.atomic_folder import locked, temporary_name
from .publishing import check_finished, check_repo_id, files_of, upload


logger = logging.getLogger(__name__)


class PeriodicPublisher:
    """
    Uploads models in the background while the training goes on.

    One upload runs at a time. A model that comes meanwhile waits, and replaces one that waits already. Errors are
    logged and do not stop the training. Use it in the main process alone.

    Args:
        repo_id, private, token, revision, retries, wait: as in [`publish`][showo_hf.training.publishing.publish].
        folder: models are copied to temporary folders beside this one, the output of the run.

    Attributes:
        last_commit: the id of the last commit; None before the first.
        last_error: the error of the last upload; None if it succeeded.
    """

    def __init__(
        self,
        repo_id: str,
        folder: str | os.PathLike,
        *,
        private: bool = False,
        token: str | None = None,
        revision: str | None = None,
        retries: int = 5,
        wait: float = 1.0,
    ):
        check_repo_id(repo_id)
        self.repo_id = repo_id
        self.folder = Path(folder).absolute()
        self.options: dict[str, Any] = {"private": private, "token": token, "revision": revision}
        self.options |= {"retries": retries, "wait": wait}
        self.last_commit: str | None = None
        self.last_error: Exception | None = None
        self.changed = threading.Condition()
        self.stopped = threading.Event()
        self.waiting: tuple[Path, str, contextlib.ExitStack] | None = None
        self.thread: threading.Thread | None = None

    @contextlib.contextmanager
    def new(self, commit_message: str) -> Iterator[Path]:
        """
        Yield an empty folder to save a model to. It is uploaded in the background after the block, then deleted.

        Nothing is uploaded if the block ends with an error.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        snapshot = temporary_name(self.folder)
        snapshot.mkdir()
        cleaner = contextlib.ExitStack()
        cleaner.callback(shutil.rmtree, snapshot, ignore_errors=True)
        cleaner.enter_context(locked(snapshot))  # so that a later run deletes it only if this one was killed
        try:
            yield snapshot
        except BaseException:
            cleaner.close()
            raise
        with self.changed:
            if self.stopped.is_set():
                cleaner.close()
                return
            if self.waiting is not None:
                self.waiting[2].close()
            self.waiting = (snapshot, commit_message, cleaner)
            if self.thread is None:
                self.thread = threading.Thread(target=self.work, name="upload", daemon=True)
                self.thread.start()

    def push(self, folder: str | os.PathLike, commit_message: str):
        """Copy the files of a finished folder, and upload the copy in the background. A full disk is logged."""
        folder = Path(folder)
        try:
            with self.new(commit_message) as snapshot:
                for name in files_of(folder)[0]:
                    (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(folder / name, snapshot / name)
        except OSError as error:
            self.failed(error, commit_message)

    def work(self):
        """Upload what waits, until nothing does. Runs in the thread."""
        while True:
            with self.changed:
                if self.waiting is None:
                    self.thread = None
                    self.changed.notify_all()
                    return
                (snapshot, message, cleaner), self.waiting = self.waiting, None
            try:
                with cleaner:
                    files, _ = files_of(snapshot)
                    check_finished(snapshot, files)
                    _, self.last_commit = upload(
                        snapshot, files, self.repo_id, commit_message=message, stop=self.stopped, **self.options
                    )
                self.last_error = None
            except Exception as error:  # the training goes on whatever happens here
                self.failed(error, message)

    def failed(self, error: Exception, message: str):
        self.last_error = error
        logger.warning("%r was not uploaded to %s: %s", message, self.repo_id, first_line(error))

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to upload. Returns False if this takes longer than `timeout` seconds."""
        with self.changed:
            return self.changed.wait_for(lambda: self.thread is None, timeout)

    def close(self, timeout: float = 60.0) -> bool:
        """
        Wait for the uploads, and give up those that take longer than `timeout` seconds: no further try is made.

        An upload that was given up cannot replace one that begins after this call: its commit names the commit before
        it, and the Hub refuses it if another came in between.

        Returns:
            Whether all was done. The last error is in `last_error`.
        """
        done = self.flush(timeout)
        self.stopped.set()
        with self.changed:
            if self.waiting is not None:
                self.waiting[2].close()
                self.waiting = None
        if not done:
            logger.warning("an upload to %s took longer than %g seconds and was given up", self.repo_id, timeout)
        return done


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

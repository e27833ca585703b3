import errno
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from curate.datasets import storage
from curate.datasets.storage import (
    exists,
    glob,
    is_folder,
    list_below,
    list_entries,
    list_names,
    list_times,
    open_read,
    read_bytes,
    size_of,
)
from curate.datasets.writing import remove, write_whole
from curate.errors import ReadError, ShardError, StorageError, WriteError
from support.moody import ClientError, Moody


def test_what_fails_twice_is_asked_a_third_time(moody, tmp_path):
    Moody.failures[:] = [errno.EIO] * 2
    write_whole(moody, b"content")
    assert Moody.calls == ["pipe"] * 3
    for ask, answer in ((read_bytes, b"content"), (exists, True)):
        Moody.failures[:] = [errno.EIO] * 2
        assert ask(moody) == answer
    Moody.failures[:] = [errno.EIO] * 2
    assert list_names(f"moody://{tmp_path}") == ["file"]
    Moody.failures[:] = [errno.EIO] * 2
    remove(moody)
    assert not exists(moody)
    remove(moody)


def test_what_fails_for_good_is_one_line_and_never_a_false_answer(moody):
    write_whole(moody, b"content")
    for ask in (read_bytes, exists, lambda url: list_names(url.rsplit("/", 1)[0])):
        Moody.failures[:] = [errno.EIO] * 3
        with pytest.raises(ReadError, match=r"moody://.*cannot be read \(Input/output error\)"):
            ask(moody)
    Moody.failures[:] = [errno.EIO] * 3
    with pytest.raises(WriteError, match=r"moody://.*cannot be written \(Input/output error\)"):
        write_whole(moody, b"other")
    assert read_bytes(moody) == b"content"


ASKED = {
    "cat": read_bytes,
    "info": size_of,
    "exists": exists,
    "isdir": is_folder,
    "names": lambda url: list_names(url.rsplit("/", 1)[0]),
    "times": lambda url: list_times(url.rsplit("/", 1)[0]),
    "entries": lambda url: list_entries(url.rsplit("/", 1)[0]),
    "glob": lambda url: glob(url.rsplit("/", 1)[0] + "/*"),
    "below": lambda url: list_below(url.rsplit("/", 1)[0]),
    "open": open_read,
    "read": lambda url: open_read(url).read(),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_file_systems_own_kinds_of_errors_are_tried_again_and_become_a_read_error(moody, ask):
    write_whole(moody, b"content")
    answer = ask(moody)
    if ask is not open_read:
        Moody.failures[:] = [ClientError("SlowDown")] * 2
        assert ask(moody) == answer
    Moody.failures[:] = [ClientError("An error\noccurred (SlowDown)")] * 3
    with pytest.raises(ReadError) as caught:
        ask(moody)
    told = "cannot be read (ClientError: An error occurred (SlowDown)); run again when its storage answers"
    assert str(caught.value).endswith(told)
    assert not isinstance(caught.value, ShardError)


def test_an_open_file_reads_on_where_it_stood_when_a_read_failed(moody):
    content = bytes(range(256)) * 40
    write_whole(moody, content)
    with open_read(moody) as file:
        got = b""
        for failures in (0, 1, 2, 0, 2):
            Moody.failures[:] = [ClientError("connection lost")] * failures
            got += file.read(1000)
        assert got == content[:5000]
        file.seek(-10, os.SEEK_END)
        assert file.read() == content[-10:]


def test_what_is_not_there_is_told_from_storage_that_fails(moody, tmp_path):
    (tmp_path / "plain").write_bytes(b"x")
    for url in (f"moody://{tmp_path}/none", f"{tmp_path}/none", f"{tmp_path}/plain/below"):
        for ask in (read_bytes, size_of, open_read):
            with pytest.raises(FileNotFoundError):
                ask(url)
        assert not exists(url)
        assert list_names(url) == [] and list_times(url) == list_entries(url) == glob(f"{url}/*") == {}
        remove(url)


def test_a_url_of_an_unknown_kind_is_one_line(tmp_path):
    with pytest.raises(StorageError, match=r"^nosuch://x: cannot open this kind of URL: Protocol not known: nosuch$"):
        read_bytes("nosuch://x")


@pytest.fixture
def plain_server():
    """An HTTP server that knows no ranges, as many do. `cuts`: so many answers end in their middle."""

    class Handler(BaseHTTPRequestHandler):
        content, cuts, says_length = bytes(range(256)) * 400, 0, True

        def do_HEAD(self, body=False):
            self.send_response(200)
            if self.says_length:
                self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            if body:
                self.wfile.write(self.content[: len(self.content) // 2] if Handler.cuts else self.content)
                Handler.cuts = max(0, Handler.cuts - 1)

        def do_GET(self):
            self.do_HEAD(body=True)

        def log_message(self, *about):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/file", Handler
        server.shutdown()


def test_a_server_without_ranges_is_read_whole_and_again(plain_server, monkeypatch):
    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    url, handler = plain_server
    for handler.cuts in (0, 1, 2):
        with open_read(url) as file:
            file.seek(-10, os.SEEK_END)
            assert file.read() == handler.content[-10:]
    handler.cuts = 9
    with pytest.raises(ReadError, match=r"cannot be read \(ClientPayloadError"):
        open_read(f"{url}?token=secret").read()
    handler.cuts, handler.says_length = 0, False
    with pytest.raises(ReadError, match="does not say how large it is"):
        size_of(url)


def test_a_store_without_credentials_says_what_to_set(moody):
    class NoCredentialsError(Exception):
        pass

    Moody.failures[:] = [NoCredentialsError("Unable to locate credentials")] * 3
    with pytest.raises(ReadError, match="set the store's credentials, such as AWS_ACCESS_KEY_ID"):
        read_bytes(moody)


def test_a_command_in_place_of_a_url_is_not_run(tmp_path):
    with pytest.raises(StorageError, match="pipe: runs a command, which is not supported; give the URL itself"):
        read_bytes(f"pipe:touch {tmp_path}/made")
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_name_has_brackets_is_listed(tmp_path):
    (tmp_path / "a[1]/b").mkdir(parents=True)
    (tmp_path / "a1/b").mkdir(parents=True)
    for name in ("a[1]/b/x.tar", "a1/b/y.tar", "a[1]/b/.z.tar"):
        (tmp_path / name).write_bytes(b"1")
    for root in (str(tmp_path), f"file://{tmp_path}"):
        assert list(glob(f"{root}/a[1]/*/*.tar")) == [f"{tmp_path}/a[1]/b/.z.tar", f"{tmp_path}/a[1]/b/x.tar"]
        assert list(glob(f"{root}/a[2-9]/*/*.tar")) == []
        assert list(glob(f"{root}/a[0-9]/*/*.tar")) == [f"{tmp_path}/a1/b/y.tar"]

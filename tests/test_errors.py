import pytest
from curate.errors import ShardError, without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pw@host/a.tar", "https://host/a.tar"),
        ("https://TOKEN@host/a.tar", "https://host/a.tar"),
        ("https://user:p@ss@host/a@b.tar", "https://host/a@b.tar"),
        ("s3://KEY:se/cr/et@bucket/a.tar", "s3://bucket/a.tar"),
        ("https://acc.blob.net/c/{0..9}.tar?sv=1&sig=ab%2F/c", "https://acc.blob.net/c/{0..9}.tar"),
        ("https://host/a.tar#token", "https://host/a.tar"),
        ("simplecache::https://u:p@h/a.tar?k=s", "simplecache::https://h/a.tar"),
        ("HTTPS://u:p@h/a.tar", "HTTPS://h/a.tar"),
        ("ftp://u:p@h:2121/a", "ftp://h:2121/a"),
        # What holds no secret stays: a port, a wildcard, a container before its account, a path.
        ("http://localhost:9000/b/a@b.tar", "http://localhost:9000/b/a@b.tar"),
        ("s3://bucket/00?.tar", "s3://bucket/00?.tar"),
        ("abfs://container@account.dfs.core.windows.net/a.tar", "abfs://container@account.dfs.core.windows.net/a.tar"),
        ("/data/a?b=c#d@e:f.tar", "/data/a?b=c#d@e:f.tar"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url, shown):
    assert without_secrets(url) == shown
    assert without_secrets(shown) == shown
    assert str(ShardError(f"{url}: no such file; see '{url}', or (URL('{url}'))")) == (
        f"{shown}: no such file; see '{shown}', or (URL('{shown}'))"
    )

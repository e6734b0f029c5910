"""Keys, rates, sizes and paths."""

import hashlib

import httpx
import openai
import pytest

from configs.serve.default import get_config
from lm.errors import UserError
from lm.serve.api.app import Settings
from lm.serve.api.limits import Rates, named, read_keys
from lm.serve.api.protocol import ApiError
from lm.serve.api.service import confined
from lm.serve.settings import hosts_of, origins_of
from tests.lm.serve.conftest import client_of, serving


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_keys_are_read_and_compared(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\nann {digest('secret')}\n\nbob {digest('other')}  # since May\n")
    keys = read_keys(file)
    assert named(keys, "Bearer secret") == "ann" and named(keys, "bearer  other") == "bob"
    for header in ("", "Bearer", "Bearer wrong", "Basic secret", "secret", f"Bearer {digest('secret')}", "Bearer \udcff"):
        with pytest.raises(ApiError) as error:
            named(keys, header)
        assert error.value.status == 401


@pytest.mark.parametrize("text", ["", "ann\n", "ann abc\n", f"ann {'0' * 64}\nann {'1' * 64}\n", "\udcff"])
def test_a_bad_file_of_keys_is_refused(tmp_path, text):
    (tmp_path / "keys").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="keys"):
        read_keys(tmp_path / "keys")


def test_a_rate_refills():
    now = [0.0]
    rates = Rates(60, lambda: now[0])
    for _ in range(60):
        rates.take("ann")
    with pytest.raises(ApiError) as error:
        rates.take("ann")
    assert error.value.status == 429 and error.value.retry == pytest.approx(1.0)
    rates.take("bob")
    now[0] = 1.0
    rates.take("ann")
    with pytest.raises(ApiError):
        rates.take("ann")


def test_a_server_with_keys_rates_and_sizes(service):
    settings = Settings({"ann": hashlib.sha256(b"secret").digest()}, per_minute=4, body_bytes=2000)
    with serving(service, settings) as url:
        for key in ("wrong", "none"):
            with pytest.raises(openai.AuthenticationError) as refused:
                client_of(url, key).models.list()
            assert refused.value.code == "invalid_api_key"
        assert httpx.get(f"{url}/health").status_code == 200
        client = client_of(url, "secret")
        assert [model.id for model in client.models.list()] == ["tiny"]
        with pytest.raises(openai.APIStatusError) as large:
            client.completions.create(model="tiny", prompt="a" * 3000)
        assert large.value.status_code == 413
        with pytest.raises(openai.APIStatusError) as huge:
            client.completions.create(model="tiny", prompt="a" * 3_000_000)
        assert huge.value.status_code == 413
        client.models.retrieve("tiny")
        with pytest.raises(openai.RateLimitError) as often:
            client.models.list()
        assert int(often.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "host, status",
    [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("LOCALHOST", 200), ("evil.example", 403), ("", 403)],
)
def test_a_server_on_loopback_is_called_by_its_own_names(service, host, status):
    hosts = hosts_of(get_config())
    with serving(service, Settings(hosts=hosts)) as url:
        assert httpx.get(f"{url}/v1/models", headers={"host": host}).status_code == status
    with serving(service, Settings({"ann": b"0" * 32}, hosts=hosts)) as url:  # keys are enough
        assert httpx.get(f"{url}/health", headers={"host": host}).status_code == 200


def test_names_of_the_host():
    config = get_config()
    config.host = "::1"
    assert hosts_of(config) == ("localhost", "127.0.0.1", "[::1]")
    config.host, config.auth.hosts = "127.0.0.2", "Box.local"
    assert hosts_of(config) == ("box.local", "127.0.0.2")
    config.auth.hosts = "*"
    assert hosts_of(config) == ()


def test_web_pages_of_named_origins_may_ask(service):
    settings = Settings({"ann": hashlib.sha256(b"secret").digest()}, origins=("https://app.example",))
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    with serving(service, settings) as url:
        for origin, allowed in (("https://app.example", "https://app.example"), ("https://evil.example", None)):
            first = httpx.options(f"{url}/v1/chat/completions", headers=asks | {"origin": origin})
            assert first.headers.get("access-control-allow-origin") == allowed
            answer = httpx.get(f"{url}/v1/models", headers={"origin": origin, "authorization": "Bearer secret"})
            assert answer.status_code == 200 and answer.headers.get("access-control-allow-origin") == allowed
            refused = httpx.get(f"{url}/v1/models", headers={"origin": origin})
            assert refused.status_code == 401 and refused.headers.get("access-control-allow-origin") == allowed
    with serving(service) as url:
        assert "access-control-allow-origin" not in httpx.get(f"{url}/v1/models", headers={"origin": "null"}).headers


def test_origins_are_those_that_browsers_send():
    config = get_config()
    config.auth.origins = "https://app.example, http://localhost:3000"
    assert origins_of(config) == ("https://app.example", "http://localhost:3000")
    config.auth.origins = "app.example"
    with pytest.raises(UserError, match="auth.origins: 'app.example' is no origin: write it like https://"):
        origins_of(config)


TRICKS = ["..", "../other", "/etc", "a/../../other", ".", "", "\0", "link", "x" * 9000, "missing", "a/b/c", "loop"]


def test_adapters_are_confined_to_their_folder(tmp_path):
    root = tmp_path / "adapters"
    (root / "good" / "v2").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (root / "link").symlink_to(tmp_path / "other")
    (root / "loop").symlink_to(root / "loop")
    assert confined(root, "good", None) == root / "good"
    assert confined(root, "name", "good/v2") == root / "good" / "v2"
    for trick in TRICKS:
        with pytest.raises(ApiError) as error:
            confined(root, "good", trick)
        assert (error.value.status, error.value.message) == (404, "lora_path: no such folder in adapters.dir")
    for name in ("../good", "", ".hidden", "a b", "a/b", "x" * 65, "é"):
        with pytest.raises(ApiError) as error:
            confined(root, name, "good")
        assert error.value.status == 400
    with pytest.raises(ApiError) as error:
        confined(None, "good", None)
    assert error.value.status == 403

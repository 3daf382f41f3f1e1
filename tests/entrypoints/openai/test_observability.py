"""Figures and log lines of a server equal what its clients counted."""

from __future__ import annotations

import logging
import re

import pytest

HELLO = [{"role": "user", "content": "a secret prompt"}]


def value(text: str, name: str, **labels) -> float:
    for line in text.splitlines():
        found = re.match(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)$", line)
        if found and all(f'{k}="{v}"' in (found[1] or "") for k, v in labels.items()):
            return float(found[2])
    raise AssertionError(f"no sample {name} {labels}")


def test_sums_equal_the_clients_counts(start):
    server = start(metrics_compat=("vllm", "fastdeploy"))
    prompt = completion = 0
    with server.client() as client, server.http() as http:
        for n, count in ((1, 5), (3, 7), (2, 1)):
            answer = client.chat.completions.create(model="toy", messages=HELLO, n=n, max_tokens=count)
            prompt += answer.usage.prompt_tokens
            completion += answer.usage.completion_tokens
        stream = client.completions.create(
            model="toy",
            prompt=["a", "b"],
            max_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
        )
        last = list(stream)[-1].usage
        prompt, completion = prompt + last.prompt_tokens, completion + last.completion_tokens
        http.post("/v1/completions", json={"prompt": ""})
        http.get("/nothing")
        assert server.settled()
        text = http.get("/metrics").text
    assert completion == 5 + 21 + 2 + 18
    for prefix in ("fd_", "vllm:", "fastdeploy:"):
        assert value(text, f"{prefix}prompt_tokens_total") == prompt
        assert value(text, f"{prefix}generation_tokens_total") == completion
        assert value(text, f"{prefix}request_success_total", finished_reason="length") == 8
        assert value(text, f"{prefix}time_to_first_token_seconds_count") == 5
    assert value(text, "fd_requests_total", route="/v1/chat/completions", code="200") == 3
    assert value(text, "fd_requests_total", route="/v1/completions", code="400") == 1
    assert value(text, "fd_requests_total", route="none", code="404") == 1
    assert value(text, "fd_requests_rejected_total", reason="invalid_value") == 1
    assert value(text, "vllm:request_params_n_sum") == 8
    assert value(text, "fd_engine_up") == 1


def test_ledger(start):
    """accepted = finished + aborted; a refusal is neither."""
    import socket

    server = start(engine_options={"blocks": 20})
    with server.client() as client, server.http() as http:
        client.completions.create(model="toy", prompt=["a", "b", "c"], max_tokens=3)
        refused = http.post("/v1/completions", json={"prompt": "x" * 300, "max_tokens": 300})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "request_refused"
        gone = b'{"prompt": ["x", "y"], "max_tokens": 150}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(head + b"content-length: %d\r\n\r\n" % len(gone) + gone)
            while server.engine.live != 2:
                pass
        assert server.settled()
        text = http.get("/metrics").text
    assert value(text, "fd_requests_accepted_total") == 5
    assert value(text, "fd_e2e_request_latency_seconds_count") == 3
    assert value(text, "fd_requests_aborted_total", reason="client_gone") == 2
    assert value(text, "vllm:prompt_tokens_total") == 5


def test_metrics_can_be_switched_off(start):
    with start(metrics=False, ui=False).http() as http:
        assert http.get("/metrics").status_code == 404
        assert http.get("/").status_code == 404


@pytest.mark.parametrize("given", ["my-id.1_2", "bad id", "x" * 200, "a\tb", ""])
def test_request_id(server, given):
    good = given == "my-id.1_2"
    with server.http() as http:
        answer = http.get("/version", headers={"x-request-id": given})
        assert (answer.headers["x-request-id"] == given) == good
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", answer.headers["x-request-id"])
        refused = http.post("/v1/completions", json={}, headers={"x-request-id": given})
        assert (refused.headers["x-request-id"] == given) == good


def test_same_request_id_twice(server):
    """Clients' ids need not be unique."""
    import concurrent.futures

    body = {"prompt": "x", "max_tokens": 50}
    with server.http() as http, concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(
                lambda _: http.post("/v1/completions", json=body, headers={"x-request-id": "same"}),
                range(4),
            )
        )
    assert [a.status_code for a in answers] == [200] * 4
    assert len({a.json()["choices"][0]["text"] for a in answers}) == 1


def test_one_line_a_request_and_never_its_text(start, caplog):
    caplog.set_level(logging.INFO, logger="fd.serving")
    logging.getLogger("fd").propagate = True
    server = start(log_requests=True)
    with server.http() as http:
        http.post(
            "/v1/chat/completions",
            json={"messages": HELLO, "max_tokens": 3},
            headers={"x-request-id": "r1"},
        )
        http.post("/v1/completions", json={"prompt": "a secret prompt", "max_tokens": -1})
        http.get("/health")
        http.get("/metrics")
    lines = [r for r in caplog.records if getattr(r, "event", "") == "request"]
    assert [(r.route, r.status, r.reason) for r in lines] == [
        ("/v1/chat/completions", 200, "ok"),
        ("/v1/completions", 400, "invalid_value"),
    ]
    assert (lines[0].completion_tokens, lines[0].prompt_tokens) == (3, lines[0].prompt_tokens)
    assert lines[0].ttft > 0
    assert "secret" not in caplog.text


def test_load_and_version(server):
    with server.http() as http:
        found = http.get("/version").json()
        assert (found["model"], found["platform"]) == ("toy", "echo")
        assert found["max_model_len"] == 2048
        load = http.get("/load").json()
        assert load == {"server_load": 0, "running": 0, "waiting": 0, "kv_cache_usage": 0.0}
        assert http.get("/ping").status_code == 200
        assert http.post("/ping").status_code == 200


def test_tokenize_and_back(server):
    with server.http() as http:
        plain = http.post(
            "/tokenize", json={"prompt": "the <|im_end|> 你", "return_token_strs": True}
        ).json()
        assert plain["count"] == len(plain["tokens"]) == len(plain["token_strs"])
        assert max(plain["tokens"]) < 266, "special-token text must stay text"
        back = http.post("/detokenize", json={"tokens": plain["tokens"]}).json()
        assert back["prompt"] == "the <|im_end|> 你"
        chat = http.post("/tokenize", json={"messages": HELLO}).json()
        text = http.post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"]
        assert text == "<|im_start|>user\na secret prompt<|im_end|>\n<|im_start|>assistant\n"

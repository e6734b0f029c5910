from benchmarks.serving import server, truth
from benchmarks.serving.load import Ask, Outcome
from benchmarks.serving.truth import Truth

METRICS = """
# HELP lmcraft:request_success_total Finished requests, by the reason of their end.
# TYPE lmcraft:request_success_total counter
lmcraft:request_success_total{adapter="",finished_reason="length",model_name="a \\"b\\""} 7.0
lmcraft:request_success_total{adapter="x",finished_reason="length",model_name="m"} 2.0
lmcraft:kv_cache_usage_perc{model_name="m"} 2.5e-01
vllm:num_requests_running 3
process_start_time_seconds 1.7e9
"""


def metrics(length=0, stop=0, cancelled=0, tokens=0, statuses=(), own=0):
    lines = [f'lmcraft:request_success_total{{finished_reason="{name}"}} {count}' for name, count in
             {"length": length, "stop": stop, "cancelled": cancelled}.items()]  # fmt: skip
    lines += [f"lmcraft:generation_tokens_total {tokens}"]
    lines += [f'lmcraft:http_requests_total{{route="/v1/completions",status="{status}"}} {count}' for status, count in statuses]
    lines += [f'lmcraft:http_requests_total{{route="/metrics",status="200"}} {own}']
    return server.parse_metrics("\n".join(lines))


def answered(text="", tokens=5, ask=None, **more):
    found = Outcome(ask or Ask("greedy", b"", most=10), status=200, answer_tokens=tokens, **more)
    found.texts, found.finishes = {0: text}, {0: "length"}
    return found


def left(status, tokens=0):
    ask = Ask("leaves", b"", expected=frozenset({200, 429}), leave_chunks=3)
    return Outcome(ask, status=status, left=True, answer_tokens=tokens)


def bad(checks):
    return [check.name for check in checks if not check.ok]


def test_metrics_are_read_without_their_prefix():
    found = server.parse_metrics(METRICS)
    assert server.total(found, "request_success_total") == 9
    assert server.total(found, "request_success_total", adapter="x") == 2
    assert server.total(found, "request_success_total", model_name='a "b"') == 7
    assert server.total(found, "num_requests_running") == 3 and server.total(found, "no_such") == 0
    assert bad(truth.idle(found)) == ["num_requests_running", "kv_cache_usage_perc"]


def test_a_server_that_counts_the_same_passes_and_any_other_count_fails():
    known = Truth()
    for _ in range(4):
        known.add(answered())
    known.add(Outcome(Ask("not JSON", b"", expected=frozenset({400})), status=400))
    before = metrics(length=3, tokens=100, statuses=[(200, 3)], own=5)
    right = {"length": 7, "tokens": 120, "statuses": [(200, 7), (400, 1)], "own": 9}
    assert not known.wrong and not bad(known.against(before, metrics(**right)))
    counts = ({"length": 8}, {"length": 6}, {"stop": 1}, {"cancelled": 1}, {"tokens": 121}, {"tokens": 119})
    statuses = ([(200, 7), (400, 2)], [(200, 7)], [(200, 7), (400, 1), (500, 1)])
    for wrong in (*counts, *({"statuses": some} for some in statuses)):
        assert bad(known.against(before, metrics(**(right | wrong)))), wrong


def test_clients_that_left_make_bounds():
    known = Truth()
    known.add(left(200, tokens=3))
    known.add(left(0))
    for cancelled, tokens, fine in (
        (1, 3, True),
        (2, 90, True),
        (0, 3, False),
        (3, 3, False),
        (1, 2, False),
        (1, 10_000, False),
    ):
        found = known.against(metrics(), metrics(cancelled=cancelled, tokens=tokens, statuses=[(200, 1), (499, 1)]))
        assert (not bad(found)) == fine, (cancelled, tokens)


def test_some_choices_of_a_refused_request_may_have_been_taken():
    known = Truth()
    known.add(Outcome(Ask("choices", b"", expected=frozenset({200, 429}), choices=2), status=429))
    for cancelled, fine in ((0, True), (1, True), (2, False)):
        assert (not bad(known.against(metrics(), metrics(cancelled=cancelled, statuses=[(429, 1)])))) == fine


def test_what_was_not_expected_is_wrong():
    known = Truth()
    known.add(Outcome(Ask("too large", b"", expected=frozenset({413})), status=200))
    known.add(Outcome(Ask("greedy", b""), status=200, error="the stream ended without [DONE]"))
    known.add(answered(tokens=11))
    known.add(Outcome(Ask("greedy", b""), error="ConnectError"))
    assert [line.partition(":")[0] for line in known.wrong] == ["too large", "greedy", "greedy", "greedy"]


def test_foreign_markers_are_found():
    known = Truth()
    known.markers = {"abcdefgh", "qrstuvwx"}
    mine = Ask("greedy", b"", prompt="The code is abcdefgh.")
    assert known.foreign(answered("abcdefgh and standard words", ask=mine)) == []
    assert known.foreign(answered("it is qrstuvwx", ask=mine)) == ["qrstuvwx"]


def test_memory_may_grow_by_a_share_or_a_constant():
    steady, leaking = [1000 << 20] * 100, [(1000 + 2 * n) << 20 for n in range(100)]
    assert truth.memory(*server.growth(steady), 0.05, 64 << 20).ok
    assert not truth.memory(*server.growth(leaking), 0.05, 64 << 20).ok
    assert server.growth([5]) == (5, 5)

-- For wrk: sends the requests of a file in turn, and prints what came of it as one line of JSON.
-- The file, named after `--`, holds each request as HTTP has it, after a line with its length in bytes.

local requests, next_one = {}, 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  for size in file:lines() do
    requests[#requests + 1] = file:read(tonumber(size))
  end
end

function request()
  next_one = next_one % #requests + 1
  return requests[next_one]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "microseconds": %d, "failed": %d, "p50": %d, "p99": %d}\n',
    summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99)
  ))
end

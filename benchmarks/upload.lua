-- Sends the images named in the environment variable IMAGES, one path a line in that file, as multipart uploads in turn,
-- and prints what came back as one line of JSON.
local bodies = {}
for path in io.lines(os.getenv("IMAGES")) do
  local file = assert(io.open(path, "rb"))
  local content = file:read("*a")
  file:close()
  local name = path:match("[^/]+$")
  bodies[#bodies + 1] = "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"" .. name ..
    "\"\r\nContent-Type: application/octet-stream\r\n\r\n" .. content .. "\r\n--edge--\r\n"
end

local number = 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "multipart/form-data; boundary=edge"

function request()
  number = number % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[number])
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.3f, "p50_ms": %.3f, "p99_ms": %.3f, "failed": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end

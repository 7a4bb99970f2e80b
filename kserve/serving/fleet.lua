-- The hosts of a fleet, by when each was last heard of; this one is counted in, or leaves.
--
-- KEYS[1]  a sorted set;  ARGV: host, number of this message, microseconds after which a host is forgotten (0: leave)
-- returns  SHA-1, number of the message, time, and count of hosts, as doubles
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local kept = tonumber(ARGV[3])
if kept == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now - kept))
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil(kept / 1000)))
end
local body = struct.pack('<ddd', tonumber(ARGV[2]), now, redis.call('ZCARD', KEYS[1]))
return redis.sha1hex(body) .. body

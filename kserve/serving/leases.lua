-- Leases of one fleet: GCRA and a daily quota, bought ahead by hosts. Times are microseconds of this server's clock.
--
-- KEYS     the keys' records; all of one hash tag
-- ARGV[1]  SHA-1 of all that follows and of the names of the keys, so that nothing damaged on the way is carried out
-- ARGV[2]  host (8 bytes), then doubles: number of this message, time for which leases hold, time that a day has;
--          then for each key ten doubles, see `ask` below
-- returns  SHA-1, number of the message, time, and for each key four doubles: granted (-1: this message is older than
--          one that was carried out), how far the theoretical arrival time lies ahead, tokens used today, other hosts
--          that asked for the key of late
--
-- A record is: theoretical arrival time, day, tokens used in that day, and for each host: its name, the tokens that it
-- may hold at most, until when, and the number of its last message. What may be held is not in the bucket.
local HEAD, HOST = '<ddd', '<c8ddd'
local HOST_BYTES, ASK_BYTES = 32, 80
local KEPT = 10000000  -- how long a host that holds nothing is remembered, so that late messages are known as such

local sealed = table.concat(KEYS, ' ') .. ' ' .. ARGV[2]
if redis.sha1hex(sealed) ~= ARGV[1] then
  return redis.error_reply('DAMAGED the message is not what its sum says')
end
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local host, number, ttl, day_length, at = struct.unpack('<c8ddd', ARGV[2])
local today = math.floor(now / day_length)

-- Everything that a record says; of other hosts those that still matter.
local function read(key)
  local record = { tat = now, day = today, used = 0, held = 0, mine = 0, last = 0, others = {} }
  local raw = redis.call('GET', key)
  if not raw then return record end
  local from
  record.tat, record.day, record.used, from = struct.unpack(HEAD, raw)
  while from <= #raw do
    local name, held, expires, last
    name, held, expires, last, from = struct.unpack(HOST, raw, from)
    record.held = record.held + held  -- also of one that has just expired: it may have been spent until now
    if name == host then
      record.mine, record.last = held, last
    elseif expires + KEPT > now then
      record.others[#record.others + 1] = { name, expires > now and held or 0, expires, last }
    end
  end
  if record.day < today then  -- what is held may be spent today
    record.day, record.used = today, record.held
  end
  return record
end

local function write(key, record, held, ask)
  local expires = now + ttl
  local parts = { struct.pack(HEAD, record.tat, record.day, record.used), struct.pack(HOST, host, held, expires, number) }
  for i, other in ipairs(record.others) do
    parts[i + 2] = struct.pack(HOST, other[1], other[2], other[3], other[4])
    expires = math.max(expires, other[3])
  end
  local kept = math.max(expires + KEPT, record.tat + (ask.burst - ask.managed) * ask.interval)
  if ask.quota >= 0 then kept = math.max(kept, (record.day + 1) * day_length + ttl) end
  redis.call('SET', key, table.concat(parts), 'PX', string.format('%.0f', math.ceil((kept - now) / 1000)))
end

-- The tokens that may be granted now, all that are asked for or fewer; none where not even the least can be. `room` is
-- what nobody holds; where the least is `large`, a batch that can hardly be had otherwise, tokens count that came back
-- while the bucket was full.
local function grant(record, ask, room, large)
  local free = math.floor((now + ask.managed * ask.interval - record.tat) / ask.interval)
  if not large then free = math.min(free, room) end
  if ask.quota >= 0 then free = math.min(free, ask.quota - record.used) end
  local granted = math.min(large and ask.least or ask.most, free)
  if granted < 1 or granted < ask.least then return 0 end
  record.tat = record.tat + granted * ask.interval
  if ask.quota >= 0 then record.used = record.used + granted end
  return granted
end

local function serve(key, ask)
  local record = read(key)
  if number <= record.last then return -1, 0, 0, 0 end
  if ask.ahead >= 0 then  -- what the host knows from before, when this server may know less
    record.tat = math.max(record.tat, now + ask.ahead)
    record.used = math.max(record.used, ask.used)
  end
  local room = ask.managed - math.max(0, ask.held)
  for _, other in ipairs(record.others) do room = room - other[2] end
  local large = ask.least > room and ask.least * 2 > ask.managed
  local surplus = large and ask.burst - ask.managed or 0
  record.tat = math.max(record.tat, now + (record.held - surplus) * ask.interval)
  local back = math.min(ask.back, record.mine)
  record.tat = math.min(record.tat - back * ask.interval, now + ask.burst * ask.interval)
  if ask.quota >= 0 then record.used = math.max(0, record.used - back) end
  local granted = grant(record, ask, room, large)
  write(key, record, math.max(0, ask.held + granted), ask)
  return granted, record.tat - now, record.used, #record.others
end

local answer = { struct.pack('<dd', number, now) }
local count = (#ARGV[2] + 1 - at) / ASK_BYTES
for i = 1, count do
  local ask = {}
  ask.interval,  -- of one token
  ask.burst,     -- of the limit
  ask.managed,   -- what of the burst is bought here; the rest stands at the hosts, unbought
  ask.quota,     -- of a day, without what stands at the hosts; -1: none
  ask.held,      -- tokens that the host has, without those that it gives back; below 0: spent of what stands there
  ask.back,      -- tokens that it gives back
  ask.least,     -- fewer are of no use
  ask.most,      -- tokens that it would like to have
  ask.ahead,     -- how far ahead its own idea of the theoretical arrival time is; -1: it has none to tell
  ask.used       -- its own idea of the tokens used today
    = struct.unpack('<dddddddddd', ARGV[2], at + (i - 1) * ASK_BYTES)
  answer[i + 1] = struct.pack('<dddd', serve(KEYS[i], ask))
end
local body = table.concat(answer)
return redis.sha1hex(body) .. body

-- What a key uses, where all gateways see it. `LocalLimits` in limits.py is the same arithmetic in Python.
--
-- KEYS  requests, tokens  hashes: second -> how many in it
--       leases            sorted set: grant -> when its lease ends, in ms
--       spent             tokens, for good
-- ARGV  "admit",  now, grant, lease, reserved, then the most requests and tokens in a minute, leases at once and tokens for good; -1: any number
--       "settle", now, grant, lease, reserved, used, whether tokens in a minute are limited, whether Redis was away when it was granted
-- now and lease are in ms; now is '' for this server's own clock, the only one that all gateways share.

local WINDOW = 61 -- seconds: the 60 before this one, and this one. Of 60 alone, a minute could see the end of one and the start of another
local KEPT = 86400 -- seconds that a lease is remembered after its end, so that what was used can still be settled

local requests, tokens, leases, spent = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now, grant, lease, reserved = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local second = math.floor(now / 1000)

local function window(key)
  local seen = {counts = {}, sum = 0, newest = second - WINDOW}
  local stored = redis.call('HGETALL', key)
  for i = 1, #stored, 2 do
    local at, count = tonumber(stored[i]), tonumber(stored[i + 1])
    if at <= second - WINDOW then
      redis.call('HDEL', key, stored[i])
    else
      seen.counts[#seen.counts + 1] = {at, count}
      seen.sum = seen.sum + count
      seen.newest = math.max(seen.newest, at)
    end
  end
  return seen
end

local function add(key, seen, count)
  redis.call('HINCRBY', key, second, count)
  redis.call('EXPIRE', key, WINDOW)
  seen.sum = seen.sum + count
  seen.newest = math.max(seen.newest, second)
end

-- ms until so much more fits; -1: it never will
local function wait(seen, more, most)
  if more > most then
    return -1
  end
  table.sort(seen.counts, function(a, b) return a[1] < b[1] end)
  local sum, free = seen.sum, now
  for _, entry in ipairs(seen.counts) do
    if sum + more <= most then
      break
    end
    sum = sum - entry[2]
    free = (entry[1] + WINDOW) * 1000
  end
  return free - now
end

local function left(seen, most)
  return math.max(0, most - seen.sum)
end

local function reset(seen)
  return math.max(0, (seen.newest + WINDOW) * 1000 - now)
end

local function admit(most_requests, most_tokens, most_leases, most_spent)
  redis.call('ZREMRANGEBYSCORE', leases, '-inf', now - KEPT * 1000)
  local nothing = {counts = {}, sum = 0, newest = second - WINDOW}
  local asked = most_requests >= 0 and window(requests) or nothing
  local taken = most_tokens >= 0 and window(tokens) or nothing
  local all = tonumber(redis.call('GET', spent) or 0)

  local refused, free = '', 0
  if most_spent >= 0 and all >= most_spent then
    refused = 'budget'
  elseif most_requests >= 0 and asked.sum + 1 > most_requests then
    refused, free = 'requests', wait(asked, 1, most_requests)
  elseif most_tokens >= 0 and taken.sum + reserved > most_tokens then
    refused, free = 'tokens', wait(taken, reserved, most_tokens)
  elseif most_leases >= 0 and redis.call('ZCOUNT', leases, '(' .. string.format('%d', now), '+inf') >= most_leases then
    refused = 'concurrency'
  else
    if most_requests >= 0 then
      add(requests, asked, 1)
    end
    if most_tokens >= 0 then
      add(tokens, taken, reserved)
    end
    redis.call('ZADD', leases, now + lease, grant)
    redis.call('EXPIRE', leases, KEPT + math.ceil(lease / 1000))
    all = redis.call('INCRBY', spent, reserved)
  end
  return {refused, free, left(asked, most_requests), reset(asked), left(taken, most_tokens), reset(taken), all}
end

-- Asked for again it does nothing, so it may be sent until it is answered.
local function settle(used, limited, away)
  if away and redis.call('ZADD', leases, 'NX', now, 'settled:' .. grant) == 0 then
    return 0
  end
  local ends = redis.call('ZSCORE', leases, grant)
  local at, more
  if ends then
    redis.call('ZREM', leases, grant)
    at, more = math.floor((ends - lease) / 1000), used - reserved
  elseif away then
    at, more = second, used
  else
    return 0
  end
  if limited then
    redis.call('HINCRBY', tokens, at, more)
    redis.call('EXPIRE', tokens, WINDOW)
  end
  redis.call('INCRBY', spent, more)
  return 1
end

if ARGV[1] == 'admit' then
  return admit(tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]))
end
return settle(tonumber(ARGV[6]), ARGV[7] == '1', ARGV[8] == '1')

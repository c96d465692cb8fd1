-- Stored responses, under a root of their own, `qs:{stored}`. Together they take a bounded number of
-- bytes: past it, the tenant that has the most loses its oldest ones, but never one that still runs.
--
--   response:T:R  HASH    response R of tenant T: status, next (event), logged (bytes of events), …
--   events:T:R    STREAM  "<sequence number>-1" -> frame
--   index:T       ZSET    response -> expiry (µs)
--   sizes:T       HASH    response -> bytes
--   bytes         HASH    tenant -> bytes, * -> those of all tenants

local UNENDED = { queued = true, in_progress = true }

local function of_response(root, part, tenant, id)
  return key(root, part, tenant .. ':' .. id)
end

local function weigh(root, tenant, by)
  redis.call('HINCRBY', key(root, 'bytes'), tenant, by)
  redis.call('HINCRBY', key(root, 'bytes'), '*', by)
end

local function forget_response(root, tenant, id)
  local sizes = key(root, 'sizes', tenant)
  weigh(root, tenant, 0 - tonumber(redis.call('HGET', sizes, id) or 0)) -- Redis 7 takes no "-0"
  redis.call('HDEL', sizes, id)
  redis.call('ZREM', key(root, 'index', tenant), id)
  return redis.call('DEL', of_response(root, 'response', tenant, id), of_response(root, 'events', tenant, id))
end

local function sweep(root, tenant, time)
  local index = key(root, 'index', tenant)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', time)) do
    forget_response(root, tenant, id)
  end
  if redis.call('EXISTS', index) == 0 then
    local left = tonumber(redis.call('HGET', key(root, 'bytes'), tenant) or 0)
    weigh(root, tenant, 0 - left)
    redis.call('HDEL', key(root, 'bytes'), tenant)
  end
end

local function tenants_of(root)
  local rows, tenants = redis.call('HGETALL', key(root, 'bytes')), {}
  for i = 1, #rows, 2 do
    if rows[i] ~= '*' then
      tenants[rows[i]] = tonumber(rows[i + 1])
    end
  end
  return tenants
end

local function biggest(tenants)
  local most, found = 0, nil
  for tenant, bytes in pairs(tenants) do
    if bytes > most then
      most, found = bytes, tenant
    end
  end
  return found
end

local function runs(root, tenant, id, time)
  local fields = redis.call('HMGET', of_response(root, 'response', tenant, id), 'status', 'end_by')
  return UNENDED[fields[1]] and tonumber(fields[2] or 0) * 1000000 > time
end

-- The responses that must go for `excess` bytes, but not the one of the record `but`; and whether
-- they are enough.
local function to_evict(root, excess, time, but)
  local tenants, ranks, found = tenants_of(root), {}, {}
  local tenant = biggest(tenants)
  while excess > 0 and tenant do
    local rank = ranks[tenant] or 0
    local id = redis.call('ZRANGE', key(root, 'index', tenant), rank, rank)[1]
    ranks[tenant] = rank + 1
    if not id then
      tenants[tenant] = nil
    elseif of_response(root, 'response', tenant, id) ~= but and not runs(root, tenant, id, time) then
      local size = tonumber(redis.call('HGET', key(root, 'sizes', tenant), id) or 0)
      excess, tenants[tenant] = excess - size, tenants[tenant] - size
      found[#found + 1] = { tenant, id }
    end
    tenant = biggest(tenants)
  end
  return found, excess <= 0
end

-- Evict what must go for the response of the record `for_`; unless `grows`, nothing goes if that
-- were not enough. Returns whether it is.
local function make_room(root, limit, time, for_, grows)
  local function excess()
    return tonumber(redis.call('HGET', key(root, 'bytes'), '*') or 0) - limit
  end
  if excess() <= 0 then
    return true
  end
  for tenant in pairs(tenants_of(root)) do
    sweep(root, tenant, time)
  end
  local found, enough = to_evict(root, excess(), time, for_)
  for _, one in ipairs((enough or grows) and found or {}) do
    forget_response(root, one[1], one[2])
  end
  return enough
end

local function recount(root, tenant, id, ttl)
  local time = now()
  local record, sizes = of_response(root, 'response', tenant, id), key(root, 'sizes', tenant)
  local size = tonumber(redis.call('HGET', record, 'logged') or 0)
  for _, value in ipairs(redis.call('HVALS', record)) do
    size = size + #value
  end
  weigh(root, tenant, size - tonumber(redis.call('HGET', sizes, id) or 0))
  redis.call('HSET', sizes, id, size)
  redis.call('ZADD', key(root, 'index', tenant), time + ttl * 1000, id)
  redis.call('PEXPIRE', record, ttl)
  redis.call('PEXPIRE', of_response(root, 'events', tenant, id), ttl)
  for _, shared in ipairs({ key(root, 'index', tenant), sizes, key(root, 'bytes') }) do
    if redis.call('PTTL', shared) < ttl then
      redis.call('PEXPIRE', shared, ttl)
    end
  end
  sweep(root, tenant, time)
  return time
end

-- qs_response_new: store a response that is not there yet.
--   KEYS root    ARGV tenant, id, ttl_ms, limit (bytes), name, value, …
--   returns created | exists | too_large | full (of responses that run)
local function response_new(keys, args)
  local root, tenant, id = keys[1], args[1], args[2]
  local ttl, limit = tonumber(args[3]), tonumber(args[4])
  local record, size = of_response(root, 'response', tenant, id), 0
  if redis.call('EXISTS', record) == 1 then
    return 'exists'
  end
  for i = 5, #args do
    size = size + #args[i]
  end
  if size > limit then
    return 'too_large'
  end
  redis.call('HSET', record, unpack(args, 5))
  if not make_room(root, limit, recount(root, tenant, id, ttl), record, false) then
    forget_response(root, tenant, id)
    return 'full'
  end
  return 'created'
end

-- qs_response_write: add events to a response that has not ended, and set fields of it.
--   KEYS root    ARGV tenant, id, ttl_ms, limit (bytes), number of the first event, events, frame, …, name, value, …
--   Events that are there already are skipped.
--   returns written | gone (it has ended or is closed, or is not there any more)
local function response_write(keys, args)
  local root, tenant, id = keys[1], args[1], args[2]
  local ttl, limit, first, count = tonumber(args[3]), tonumber(args[4]), tonumber(args[5]), tonumber(args[6])
  local record = of_response(root, 'response', tenant, id)
  local fields = redis.call('HMGET', record, 'status', 'next', 'logged', 'closed')
  if not UNENDED[fields[1]] or fields[4] then
    return 'gone'
  end
  local next_number, logged = tonumber(fields[2] or 0), tonumber(fields[3] or 0)
  for i = 1, count do
    local number, frame = first + i - 1, args[6 + i]
    if number >= next_number then
      redis.call('XADD', of_response(root, 'events', tenant, id), int(number) .. '-1', 'frame', frame)
      logged = logged + #frame
      next_number = number + 1
    end
  end
  redis.call('HSET', record, 'next', int(next_number), 'logged', int(logged))
  if #args > 6 + count then
    redis.call('HSET', record, unpack(args, 7 + count))
  end
  make_room(root, limit, recount(root, tenant, id, ttl), record, true)
  return 'written'
end

-- qs_response_close: let nobody write to a response any more, as it is to end in another way than its
-- owner would end it.
--   KEYS root    ARGV tenant, id
--   returns 1, or 0 if it has ended, or is not there any more
local function response_close(keys, args)
  local record = of_response(keys[1], 'response', args[1], args[2])
  if not UNENDED[redis.call('HGET', record, 'status')] then
    return 0
  end
  redis.call('HSET', record, 'closed', 1)
  return 1
end

-- qs_response_end: write the end of a response that was closed.
--   KEYS root    ARGV and returns as for qs_response_write
local function response_end(keys, args)
  redis.call('HDEL', of_response(keys[1], 'response', args[1], args[2]), 'closed')
  return response_write(keys, args)
end

-- qs_response_touch: responses that a conversation still needs live as long as its newest.
--   KEYS root    ARGV tenant, ttl_ms, id, …
local function response_touch(keys, args)
  local root, tenant, ttl = keys[1], args[1], tonumber(args[2])
  for i = 3, #args do
    if redis.call('EXISTS', of_response(root, 'response', tenant, args[i])) == 1 then
      recount(root, tenant, args[i], ttl)
    end
  end
  return #args - 2
end

-- qs_response_drop: delete a response.
--   KEYS root    ARGV tenant, id
--   returns 1, or 0 if it was not there
local function response_drop(keys, args)
  return math.min(1, forget_response(keys[1], args[1], args[2]))
end

-- Jobs in and out of the queue, and the shortest queue: while a job waits and a slot is free, the head of
-- the queue goes to the worker with the lowest load = (running + 1) / (slots * speed). A light job at the head
-- does not wait for a slot.

local run_suspects -- in alone.lua: jobs that must have a worker to themselves

-- Equal loads go to the worker dispatched to least recently: its turn is a fraction below the load's own
-- resolution of 2^-16, so the score still reads as the load. 7 + 16 + 30 bits fit a double exactly.
local function load_score(running, slots, speed, turn)
  local load = math.min((running + 1) / (slots * speed), 127)
  return math.floor(load * 65536 + 0.5) / 65536 + (turn % 2 ^ 30) * 2 ^ -46
end

-- A worker as it is now. An error if one of its keys is not ours.
local function seat_of(root, worker, time)
  local expiry = redis.call('ZSCORE', key(root, 'alive'), worker)
  local fields = redis.call('HMGET', key(root, 'worker', worker), 'slots', 'speed', 'turn', 'state')
  return {
    worker = worker,
    alive = expiry and tonumber(expiry) > time,
    slots = tonumber(fields[1]), -- nil: the registration has expired
    speed = tonumber(fields[2]),
    turn = tonumber(fields[3]),
    state = fields[4],
    running = redis.call('HLEN', key(root, 'lease', worker)),
  }
end

-- The only place that lets a worker take a job.
local function offer_seat(root, seat)
  if seat.slots and seat.alive and seat.state == 'ready' and seat.running < seat.slots then
    local score = load_score(seat.running, seat.slots, seat.speed, seat.turn)
    redis.call('ZADD', key(root, 'free'), score, seat.worker)
  else
    redis.call('ZREM', key(root, 'free'), seat.worker)
  end
end

-- Returns the worker's seat, for a dispatch in the same call.
local function offer(root, worker, time)
  local seat
  local well = attempt(root, worker, function()
    seat = seat_of(root, worker, time)
    offer_seat(root, seat)
  end)
  if not well then
    redis.call('ZREM', key(root, 'free'), worker)
  end
  return seat
end

-- The reaper looks at a job at `when`, or as soon as its total time or its grace time is over.
local function look_at(root, id, when, end_by, detached)
  local soonest = math.min(when, tonumber(end_by), tonumber(detached or when))
  redis.call('ZADD', key(root, 'due'), soonest, id)
end

local function enqueue(root, id, tenant, rank)
  redis.call('ZADD', key(root, 'queue'), rank, id)
  if redis.call('HINCRBY', key(root, 'waiting'), tenant, 1) == 1 then
    redis.call('PEXPIRE', key(root, 'waiting'), DAY_MS) -- it may be new; the reaper renews it
  end
end

local function dequeue(root, id, tenant)
  if redis.call('ZREM', key(root, 'queue'), id) == 1 then
    if redis.call('HINCRBY', key(root, 'waiting'), tenant, -1) <= 0 then
      redis.call('HDEL', key(root, 'waiting'), tenant)
    end
  else
    redis.call('ZREM', key(root, 'alone'), id)
  end
end

-- What a dispatch needs to know of a job that waits; nil for one that does not, was evicted or deleted by
-- hand, or whose key is not ours.
local function waiting_job(root, id)
  local fields = redis.pcall('HMGET', key(root, 'job', id), 'state', 'epoch', 'tenant', 'end_by', 'detached',
    'api', 'body', 'resume', 'attempts')
  if fields.err or fields[1] ~= 'queued' then
    return nil
  end
  return { epoch = tonumber(fields[2]), tenant = fields[3], end_by = tonumber(fields[4]), detached = fields[5],
    api = fields[6], body = fields[7], resume = fields[8], attempts = number(fields[9], 0) }
end

local function forget_job(root, id)
  for _, set in ipairs({ 'queue', 'alone', 'due' }) do
    redis.call('ZREM', key(root, set), id)
  end
end

-- Greater than every epoch of this pool and of this job, also when Redis has lost its last second.
local function greater_epoch(last, previous, time)
  return math.max(number(last, 0) + 1, (previous or 0) + 1, time)
end

local function next_epoch(root, previous, time)
  local state = key(root, 'state')
  local epoch = greater_epoch(redis.call('HGET', state, 'epoch'), previous, time)
  redis.call('HSET', state, 'epoch', epoch)
  return epoch
end

-- What the pool's state gives to a dispatch, and what it learns of it. `tag`: nil for a job that has not
-- waited, whose tag is the virtual time. Returns epoch, turn, tag.
local function draw(root, class, tag, previous, time)
  local state, virtual = key(root, 'state'), 'V:' .. class
  local fields = redis.call('HMGET', state, 'epoch', 'turn', virtual)
  local epoch = greater_epoch(fields[1], previous, time)
  local turn, passed = number(fields[2], 0) + 1, number(fields[3], 0)
  tag = tag or passed
  redis.call('HSET', state, 'epoch', epoch, 'turn', turn, virtual, math.max(passed, tag + 1))
  return epoch, turn, tag
end

local CARRIED = 16384 -- bytes of a body; a worker fetches a larger one

-- What wakes a worker: a job's epoch and id and, unless it is large or goes on from somewhere, whose it is and
-- its body, which saves the worker a fetch.
local function hint(epoch, id, api, body, resume)
  local named = epoch .. ' ' .. id
  if resume or not body or #body > CARRIED then
    return named
  end
  return named .. '\n' .. api .. '\n' .. body
end

-- Give a job to a worker. `tag`: see `draw`. `new`: the fields of a job that is not written yet, and `keep_ms`
-- its TTL. Returns the epoch and the tag.
local function assign(root, id, job, class, tag, seat, time, new, keep_ms)
  local worker, epoch = seat.worker
  epoch, seat.turn, tag = draw(root, class, tag, job.epoch, time)
  local hash, digits = key(root, 'job', id), int(epoch)
  redis.call('HSET', hash, 'state', 'running', 'epoch', digits, 'worker', worker, 'started', time,
    'attempts', job.attempts + 1, 'rank', class * CLASS + tag, unpack(new or {}))
  if keep_ms then
    redis.call('PEXPIRE', hash, keep_ms)
  end
  look_at(root, id, job.end_by, job.end_by, job.detached)
  local added = redis.call('HSET', key(root, 'lease', worker), id, digits)
  if seat.running == 0 then -- it is new; heartbeats renew it, and the inbox
    redis.call('PEXPIRE', key(root, 'lease', worker), DAY_MS)
  end
  local told = hint(digits, id, job.api, job.body, job.resume)
  if redis.pcall('RPUSH', key(root, 'inbox', worker), told) == 1 then -- an error: the lease is what counts
    redis.call('PEXPIRE', key(root, 'inbox', worker), DAY_MS)
  end
  redis.call('HSET', key(root, 'worker', worker), 'turn', seat.turn)
  seat.running = seat.running + added
  offer_seat(root, seat)
  return epoch, tag
end

local function assign_waiting(root, id, job, rank, seat, time)
  dequeue(root, id, job.tenant)
  local class, tag = fair_parts(rank)
  assign(root, id, job, class, tag, seat, time)
end

-- Give a job that waits to a worker; what is not one of ours is forgotten.
local function start(root, id, rank, seat, time)
  local job = waiting_job(root, id)
  if not job or not attempt(root, id, assign_waiting, root, id, job, rank, seat, time) then
    forget_job(root, id)
  end
end

-- The seat of a worker that lives; nil if it has expired, or cannot be read: that costs this worker alone, which
-- takes nothing.
local function usable(root, worker, time)
  local well, seat = pcall(seat_of, root, worker, time)
  return well and seat.alive and seat.slots and seat or nil
end

-- The seat of the worker with the lowest load. `known`: a seat that this call has seen already.
local function lowest_load(root, time, known)
  while true do
    local worker = redis.call('ZRANGE', key(root, 'free'), 0, 0)[1]
    local seat = known and known.worker == worker and known or worker and usable(root, worker, time)
    if not worker or seat then
      return seat
    end
    redis.call('ZREM', key(root, 'free'), worker)
  end
end

local SPARE = 16 -- light jobs that a worker takes beyond its slots

-- A worker for a light job while all slots are taken: the one that holds the fewest jobs.
local function spare(root, id, time)
  if redis.pcall('HGET', key(root, 'job', id), 'light') ~= '1' then
    return nil
  end
  local found
  for _, worker in ipairs(redis.call('ZRANGE', key(root, 'alive'), 0, -1)) do
    local seat = usable(root, worker, time)
    if seat and seat.running < seat.slots + SPARE and (not found or seat.running < found.running)
        and seat.state == 'ready' then
      found = seat
    end
  end
  return found
end

-- Nothing waits, so the counts are nought, whatever became of the jobs. With a slot free besides, nobody
-- owes anybody anything.
local function forget(root)
  if redis.call('ZCARD', key(root, 'free')) > 0 then
    redis.call('DEL', key(root, 'waiting'), key(root, 'fair'))
  else
    redis.call('DEL', key(root, 'waiting'))
  end
end

-- `seat`: of the worker that has just become free, if one has.
local function dispatch(root, time, seat)
  if redis.call('EXISTS', key(root, 'queue'), key(root, 'alone'), key(root, 'reserved'), key(root, 'waiting'),
      key(root, 'fair')) == 0 then
    return
  end
  if redis.call('EXISTS', key(root, 'alone'), key(root, 'reserved')) > 0 then
    run_suspects(root, time)
    seat = nil -- it may be another's now
  end
  while true do
    local head = redis.call('ZRANGE', key(root, 'queue'), 0, 0, 'WITHSCORES')
    if not head[1] then
      return forget(root)
    end
    seat = lowest_load(root, time, seat) or spare(root, head[1], time)
    if not seat then
      return
    end
    start(root, head[1], tonumber(head[2]), seat, time)
  end
end

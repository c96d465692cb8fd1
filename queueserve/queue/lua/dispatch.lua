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

-- The only place that lets a worker take a job.
local function offer_slot(root, worker, time)
  local registration = key(root, 'worker', worker)
  local fields = redis.call('HMGET', registration, 'slots', 'speed', 'turn', 'state')
  local expiry = redis.call('ZSCORE', key(root, 'alive'), worker)
  local running = redis.call('HLEN', key(root, 'lease', worker))
  if fields[1] then
    redis.call('HSET', registration, 'running', running)
  end
  if fields[1] and fields[4] == 'ready' and expiry and tonumber(expiry) > time
      and running < tonumber(fields[1]) then
    local score = load_score(running, tonumber(fields[1]), tonumber(fields[2]), tonumber(fields[3]))
    redis.call('ZADD', key(root, 'free'), score, worker)
  else
    redis.call('ZREM', key(root, 'free'), worker)
  end
end

local function offer(root, worker, time)
  if not attempt(root, worker, offer_slot, root, worker, time) then
    redis.call('ZREM', key(root, 'free'), worker)
  end
end

-- The reaper looks at a job at `when`, or as soon as its total time or its grace time is over.
local function look_at(root, id, when, end_by, detached)
  local soonest = math.min(when, tonumber(end_by), tonumber(detached or when))
  redis.call('ZADD', key(root, 'due'), soonest, id)
end

local function enqueue(root, id, tenant, rank)
  redis.call('ZADD', key(root, 'queue'), rank, id)
  redis.call('HINCRBY', key(root, 'waiting'), tenant, 1)
  redis.call('PEXPIRE', key(root, 'waiting'), DAY_MS)
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

-- nil for a job that was evicted or deleted by hand, or whose key is not ours.
local function job_state(root, id)
  local state = redis.pcall('HGET', key(root, 'job', id), 'state')
  return type(state) == 'string' and state or nil
end

local function forget_job(root, id)
  for _, set in ipairs({ 'queue', 'alone', 'due' }) do
    redis.call('ZREM', key(root, set), id)
  end
end

-- Greater than every epoch of this pool and of this job, also when Redis has lost its last second.
local function next_epoch(root, previous, time)
  local state = key(root, 'state')
  local last = number(redis.call('HGET', state, 'epoch'), 0)
  local epoch = math.max(last + 1, (previous or 0) + 1, time)
  redis.call('HSET', state, 'epoch', epoch)
  return epoch
end

local CARRIED = 16384 -- bytes of a body; a worker fetches a larger one

-- What wakes a worker: a job's epoch and id and, unless it is large or goes on from somewhere, whose it is and
-- its body, which saves the worker a fetch.
local function hint(epoch, id, api, body, resume)
  local named = int(epoch) .. ' ' .. id
  if resume or not body or #body > CARRIED then
    return named
  end
  return named .. '\n' .. api .. '\n' .. body
end

local function assign(root, id, rank, worker, time)
  local job = key(root, 'job', id)
  local fields = redis.call('HMGET', job, 'epoch', 'tenant', 'end_by', 'detached', 'api', 'body', 'resume',
    'attempts')
  local epoch = next_epoch(root, tonumber(fields[1] or 0), time)
  dequeue(root, id, fields[2])
  fair_advance(root, rank)
  redis.call('HSET', job, 'state', 'running', 'epoch', epoch, 'worker', worker, 'started', time,
    'attempts', number(fields[8], 0) + 1)
  look_at(root, id, tonumber(fields[3]), fields[3], fields[4])
  redis.call('HSET', key(root, 'lease', worker), id, int(epoch))
  redis.call('PEXPIRE', key(root, 'lease', worker), DAY_MS)
  local told = hint(epoch, id, fields[5], fields[6], fields[7])
  redis.pcall('RPUSH', key(root, 'inbox', worker), told) -- the lease is what counts
  redis.call('PEXPIRE', key(root, 'inbox', worker), DAY_MS)
  local turn = redis.call('HINCRBY', key(root, 'state'), 'turn', 1)
  redis.call('HSET', key(root, 'worker', worker), 'turn', turn)
  offer(root, worker, time)
end

-- nil for a registration that has expired, or that is not ours.
local function slots_of(root, worker)
  local slots = redis.pcall('HGET', key(root, 'worker', worker), 'slots')
  return type(slots) == 'string' and tonumber(slots) or nil
end

-- nil for a lease that is not ours.
local function held_by(root, worker)
  local held = redis.pcall('HLEN', key(root, 'lease', worker))
  return type(held) == 'number' and held or nil
end

-- How many jobs a worker holds, and its slots; nil if it has expired, or cannot be read: that costs this worker
-- alone, which takes nothing.
local function usable(root, worker, time)
  local expiry = redis.call('ZSCORE', key(root, 'alive'), worker)
  local slots = expiry and tonumber(expiry) > time and slots_of(root, worker)
  local held = slots and held_by(root, worker)
  if held then
    return held, slots
  end
end

local function lowest_load(root, time)
  while true do
    local worker = redis.call('ZRANGE', key(root, 'free'), 0, 0)[1]
    if not worker or usable(root, worker, time) then
      return worker
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
  local found, fewest
  for _, worker in ipairs(redis.call('ZRANGE', key(root, 'alive'), 0, -1)) do
    local running, slots = usable(root, worker, time)
    if running and running < slots + SPARE and (not fewest or running < fewest)
        and redis.call('HGET', key(root, 'worker', worker), 'state') == 'ready' then
      found, fewest = worker, running
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

local function dispatch(root, time)
  run_suspects(root, time)
  while true do
    local head = redis.call('ZRANGE', key(root, 'queue'), 0, 0, 'WITHSCORES')
    if not head[1] then
      return forget(root)
    end
    local worker = lowest_load(root, time) or spare(root, head[1], time)
    if not worker then
      return
    end
    if job_state(root, head[1]) ~= 'queued'
        or not attempt(root, head[1], assign, root, head[1], tonumber(head[2]), worker, time) then
      forget_job(root, head[1])
    end
  end
end

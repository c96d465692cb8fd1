-- Jobs that may be what ended their workers. After a second crash a job is a suspect: it leaves the queue for
-- `alone`, and the next worker runs it by itself. So a crash has one culprit, and its batch-mates are not
-- taken for it. At most half of the workers are reserved for suspects, and at least one; a reserved
-- worker takes nothing new, and as soon as it is empty it runs one suspect after the other.
--
--   alone     ZSET  job -> rank                    suspects that wait
--   reserved  HASH  worker -> job, or '' while it still runs other jobs

local function suspect(attempts, max_attempts)
  return attempts > 0 and attempts >= max_attempts - 1
end

local function empty(root, worker)
  return redis.pcall('HLEN', key(root, 'lease', worker)) == 0
end

local function next_suspect(root)
  while true do
    local first = redis.call('ZRANGE', key(root, 'alone'), 0, 0, 'WITHSCORES')
    if not first[1] then
      return nil
    end
    if redis.pcall('HGET', key(root, 'job', first[1]), 'state') == 'queued' then
      return first[1], tonumber(first[2])
    end
    forget_job(root, first[1])
  end
end

local function run_suspect(root, seat, time)
  local id, rank = next_suspect(root)
  redis.call('HSET', key(root, 'reserved'), seat.worker, id)
  start(root, id, rank, seat, time)
end

local function release(root, worker, time)
  redis.call('HDEL', key(root, 'reserved'), worker)
  local registration = key(root, 'worker', worker)
  if redis.call('HGET', registration, 'state') == 'alone' then
    redis.call('HSET', registration, 'state', 'ready')
    offer(root, worker, time)
  end
end

-- An empty worker if there is one, else the one with the lowest load.
local function candidate(root, time)
  for _, worker in ipairs(redis.call('ZRANGE', key(root, 'free'), 0, -1)) do
    local seat = usable(root, worker, time)
    if seat and seat.running == 0 then
      return seat
    end
  end
  return lowest_load(root, time)
end

-- Give every reserved worker that is empty the next suspect. Returns how many are reserved, and how many of
-- them still run other jobs.
local function use_reserved(root, time)
  local reserved, filling = 0, 0
  local held = redis.call('HKEYS', key(root, 'reserved'))
  table.sort(held)
  for _, worker in ipairs(held) do
    local state = redis.pcall('HGET', key(root, 'worker', worker), 'state')
    local foreign = type(state) == 'table' -- an error: this key is not ours
    if foreign or state == 'draining' or not redis.call('ZSCORE', key(root, 'alive'), worker) then
      redis.call('HDEL', key(root, 'reserved'), worker)
    elseif not empty(root, worker) then
      reserved = reserved + 1
      filling = filling + (redis.call('HGET', key(root, 'reserved'), worker) == '' and 1 or 0)
    elseif not next_suspect(root) then
      release(root, worker, time)
    else
      reserved = reserved + 1
      local seat = usable(root, worker, time)
      if seat then
        run_suspect(root, seat, time)
      end
    end
  end
  return reserved, filling
end

function run_suspects(root, time)
  local reserved, filling = use_reserved(root, time)
  local most = math.max(1, math.floor(redis.call('ZCARD', key(root, 'alive')) / 2))
  while reserved < most and redis.call('ZCARD', key(root, 'alone')) > filling and next_suspect(root) do
    local seat = candidate(root, time)
    if not seat then
      return
    end
    local worker = seat.worker
    seat.state = 'alone'
    redis.call('HSET', key(root, 'worker', worker), 'state', seat.state)
    redis.call('ZREM', key(root, 'free'), worker)
    redis.call('HSET', key(root, 'reserved'), worker, '')
    redis.call('PEXPIRE', key(root, 'reserved'), DAY_MS)
    reserved = reserved + 1
    if seat.running == 0 then
      run_suspect(root, seat, time)
    else
      filling = filling + 1
    end
  end
end

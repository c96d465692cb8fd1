-- A worker's life: register, heartbeat, drain.

-- After a time in which nobody could reach Redis, every lease is extended once before anything is reaped:
-- the silence was Redis's, not theirs. When the clock was set back, every lease is shortened to match.
-- The caller must dispatch: a worker may have become free.
local function touch(root, time, timeout)
  local state = key(root, 'state')
  local seen = number(redis.call('HGET', state, 'seen'), time)
  if math.abs(time - seen) > timeout / 2 then
    local direction = time > seen and 'GT' or 'LT'
    for _, api in ipairs(redis.call('ZRANGE', key(root, 'apis'), 0, -1)) do
      redis.call('ZADD', key(root, 'apis'), direction, time + timeout, api)
    end
    for _, worker in ipairs(redis.call('ZRANGE', key(root, 'alive'), 0, -1)) do
      redis.call('ZADD', key(root, 'alive'), direction, time + timeout, worker)
      offer(root, worker, time)
    end
  end
  redis.call('HSET', state, 'seen', time)
  redis.call('PEXPIRE', state, 7 * DAY_MS)
end

local BEST_US = 300 * 1000000 -- the time constant with which the best rate is forgotten

-- Measured rates differ by noise; a worker within a fifth of the best one is as good as the best.
local function relative_speed(root, rate, time)
  local state = key(root, 'state')
  local known = redis.call('HMGET', state, 'best', 'best_at')
  local age = math.max(0, time - number(known[2], time))
  local best = math.max(rate, number(known[1], 0) * math.exp(-age / BEST_US))
  redis.call('HSET', state, 'best', string.format('%.6f', best), 'best_at', time)
  local speed = rate / best
  return speed >= 0.8 and 1 or math.max(0.1, math.floor(speed * 10 + 0.5) / 10)
end

-- qs_register: a ready worker joins. Twice is once.
--   KEYS root    ARGV worker, timeout_us, slots, speed, field, value, …   (the rest is for people)
--   returns 'ok'
local function register(keys, args)
  local root, worker, time = keys[1], args[1], now()
  local timeout = tonumber(args[2])
  local registration = key(root, 'worker', worker)
  touch(root, time, timeout)
  local reserved = redis.call('HEXISTS', key(root, 'reserved'), worker) == 1 -- when it had expired
  redis.call('HSET', registration, 'slots', args[3], 'speed', args[4], 'turn', 0,
    'state', reserved and 'alone' or 'ready', unpack(args, 5))
  redis.call('PEXPIRE', registration, math.ceil(timeout / 1000))
  redis.call('ZADD', key(root, 'alive'), time + timeout, worker)
  offer(root, worker, time)
  dispatch(root, time)
  return 'ok'
end

-- A job that was deleted by hand would hold its slot for as long as the worker lives.
local function drop_lost_jobs(root, worker)
  for _, id in ipairs(redis.call('HKEYS', key(root, 'lease', worker))) do
    if redis.call('EXISTS', key(root, 'job', id)) == 0 then
      redis.call('HDEL', key(root, 'lease', worker), id)
    end
  end
end

-- qs_heartbeat: renew a registration, and hear what this worker holds.
--   KEYS root    ARGV worker, timeout_us, steps, rate (tokens/s of one sequence; 0: keep the speed)
--   returns { verdict, snapshot, job, lease, job, lease, … }
--     verdict: ok | register (the registration has expired, the leases have not) | gone (its jobs went elsewhere)
--     snapshot: the pool's last epoch; a job that is absent here although its epoch is not above was taken away
--     lease: "epoch" or "epoch cancel"
local function heartbeat(keys, args)
  local root, worker, time = keys[1], args[1], now()
  local timeout, rate = tonumber(args[2]), tonumber(args[4])
  local registration = key(root, 'worker', worker)
  touch(root, time, timeout)
  if not redis.call('ZSCORE', key(root, 'alive'), worker) then
    dispatch(root, time)
    return { 'gone', 0 }
  end
  redis.call('ZADD', key(root, 'alive'), time + timeout, worker)
  drop_lost_jobs(root, worker)
  local known = redis.call('EXISTS', registration) == 1
  if known then
    redis.call('HSET', registration, 'steps', args[3], 'beat', math.floor(time / 1000000))
    if rate > 0 then
      redis.call('HSET', registration, 'speed', relative_speed(root, rate, time))
    end
    redis.call('PEXPIRE', registration, math.ceil(timeout / 1000))
    redis.call('PEXPIRE', key(root, 'lease', worker), DAY_MS)
    redis.call('PEXPIRE', key(root, 'inbox', worker), DAY_MS)
    offer(root, worker, time)
  end
  dispatch(root, time)
  local answer = { known and 'ok' or 'register', number(redis.call('HGET', key(root, 'state'), 'epoch'), 0) }
  for _, item in ipairs(redis.call('HGETALL', key(root, 'lease', worker))) do
    answer[#answer + 1] = item
  end
  return answer
end

-- qs_drain: a worker takes nothing new; with `leave`, it gives back what it still runs and is gone.
--   KEYS root    ARGV worker, leave (0|1)
--   returns the number of jobs it holds, or gave back
local function drain(keys, args)
  local root, worker, time = keys[1], args[1], now()
  if args[2] == '1' then
    local given_back = remove_worker(root, worker, time, false)
    dispatch(root, time)
    return given_back
  end
  if redis.call('EXISTS', key(root, 'worker', worker)) == 1 then
    redis.call('HSET', key(root, 'worker', worker), 'state', 'draining')
  end
  redis.call('ZREM', key(root, 'free'), worker)
  return redis.call('HLEN', key(root, 'lease', worker))
end

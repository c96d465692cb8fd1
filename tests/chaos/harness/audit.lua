-- Put into the library of a cluster under test, before its functions are registered: every step of every
-- job goes into one stream, in the transaction that makes it. What the functions believe is not asked;
-- the checks compare these lines with each other.

local function note(...)
  redis.call('XADD', 'chaos:audit', '*', 'e', cjson.encode({ ... }))
end

local plain_enqueue, plain_assign = enqueue, assign
local plain_end_job, plain_finish, plain_orphan = end_job, finish, orphan

enqueue = function(root, id, tenant, rank)
  if redis.call('HGET', key(root, 'job', id), 'epoch') == '0' then
    note('submit', id)
  end
  return plain_enqueue(root, id, tenant, rank)
end

-- `by`: what put the job into the queue this time.
assign = function(root, id, rank, worker, time)
  local job = key(root, 'job', id)
  local before = redis.call('HMGET', job, 'epoch', 'resumed')
  plain_assign(root, id, rank, worker, time)
  local by = before[1] == '0' and 'submit' or before[1] == before[2] and 'resume' or 'nobody'
  note('dispatch', id, redis.call('HGET', job, 'epoch'), worker, by)
end

end_job = function(root, id, state, result)
  local fields = redis.call('HMGET', key(root, 'job', id), 'state', 'epoch', 'worker')
  note('end', id, state, fields[1], fields[2], fields[3])
  return plain_end_job(root, id, state, result)
end

finish = function(keys, args)
  local verdict = plain_finish(keys, args)
  note('finish', args[2], verdict, args[3], args[1], args[4])
  return verdict
end

orphan = function(root, id, time, charged)
  local before = redis.call('HGET', key(root, 'job', id), 'state')
  plain_orphan(root, id, time, charged)
  if before == 'running' then
    note('orphan', id, redis.call('HGET', key(root, 'job', id), 'epoch'), charged and true or false)
  end
end
